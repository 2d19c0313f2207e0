"""Deploying graphs behind HTTP, version after version."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle

from raysys import audit, cluster
from raysys.arguments import checked
from raysys.console import note
from raysys.errors import RaysysError, ResourceError
from raysys.gateway import SLOTS, Backend, find_gateway, start_gateway
from raysys.imports import lazy_import
from raysys.ray_internals import key_value
from raysys.serve._application import Application, graphs_by_action, warmup_examples
from raysys.serve._autoscaling import (
    Autoscaling,
    deployment_options,
    initial_replicas,
    replica_bounds,
)
from raysys.serve._batching import Batching
from raysys.serve._compiler import ENTRY
from raysys.serve._endpoint import Endpoint
from raysys.serve._model_nodes import stored_models
from raysys.serve._nodes import Placement
from raysys.storage import Storage

if TYPE_CHECKING:
    from raysys.serve._compiler import GraphStage
    from raysys.serve._graph import Graph

ray_serve = lazy_import("ray.serve")

_START_ATTEMPTS = 2  # the second may find a file or a node that the first did not
_POLL_S = 0.1
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9.:\[\]-]+")


@checked
@dataclass(frozen=True)
class GatewayOptions:
    """Options of the gateway; all but `storage` matter only to the call that starts it.

    Attributes:
        host: Interface to listen on.
        port: HTTP port.
        grpc_port: gRPC port of the Open Inference Protocol; None disables gRPC.
        storage: Storage of the API keys and the audit log; the default root by default.
        max_source_share: Maximum share of the gateway's HTTP connections that one source, an IPv4
            address or an IPv6 network of 64 bits, may hold. A load balancer before the gateway is
            one source: give 1.0, and let it limit its clients.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    storage: Storage = field(default_factory=Storage)
    max_source_share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.max_source_share <= 1:
            raise RaysysError(
                f"max_source_share {self.max_source_share!r}: give a share above 0, at most 1"
            )


@checked
@dataclass(frozen=True)
class HTTPOptions:
    """Options of an application's HTTP requests.

    Attributes:
        max_body_bytes: Maximum size of a request body; 413 beyond.
        cache_ttl_s: Lifetime of the cached response to a JSON body; 0 disables the cache. Graphs
            that write are not cached.
        ignore_unknown_fields: Ignore fields of a JSON body that are not an input, which are
            refused with 422 by default. A request model with an `extra` of its own decides itself.
        cors_origins: Origins whose web pages may send requests, such as `https://example.com`;
            "*" for all. None by default.
    """

    max_body_bytes: int = 16 << 20
    cache_ttl_s: float = 0.0
    ignore_unknown_fields: bool = False
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        origins = self.cors_origins
        if isinstance(origins, str) or not all(_ORIGIN.fullmatch(origin) for origin in origins):
            raise RaysysError(
                f"cors_origins {origins!r}: give a tuple of origins such as https://example.com "
                "without a path, or ('*',)"
            )
        object.__setattr__(self, "cors_origins", tuple(origins))


@checked
def deploy(
    name: str,
    graph: Graph | Mapping[str, Graph],
    *,
    route: str | None = None,
    replicas: int | Autoscaling = 1,
    cpus_per_replica: float = 1.0,
    batching: Batching | None = None,
    deadline_s: float = 10.0,
    example: Mapping[str, Any] | None = None,
    protected: bool = False,
    http: HTTPOptions | None = None,
    gateway: GatewayOptions | None = None,
    start_timeout_s: float = 300.0,
) -> Endpoint:
    """Deploy a graph behind HTTP, replacing the running version of that name.

    `POST <route>` takes one request as JSON and returns one response, or takes and returns Arrow
    IPC streams of many rows; `/v2/models/<name>/infer` speaks the Open Inference Protocol. See
    `<route>/docs`.

    Several graphs are the actions of one application: they share its replicas, its route and its
    docs, and each batches its own requests. The path of an action is `<route>/<action>`, its model
    name in the Open Inference Protocol `<name>/<action>`, over HTTP and gRPC. Actions run
    concurrently, so what two of them share, such as a LazyObject, must be thread-safe. Nodes with a
    placement have a deployment per action.

    The new version's replicas start beside the old ones and run the example before they receive
    requests. No request fails during the update, and if the new version cannot start the old one
    stays. A request whose replica dies is retried on another, so nodes may run twice. An endpoint
    ends with its cluster; a line on standard error says so where that ends with a process.

    Args:
        name: Name of the application: letters, digits, `_` and `-`.
        graph: The graph, or graphs by action name: letters, digits, `_`, `-`.
        route: Path of requests; `/<name>` by default.
        replicas: Number of replicas of the entry; an `Autoscaling` follows the load. Nodes with a
            placement have replicas of their own.
        cpus_per_replica: Logical CPUs of each replica.
        batching: Batching options of each action.
        deadline_s: Request timeout, 504 beyond; the header `x-request-timeout-seconds` asks for
            less. A request that cannot meet it gets 503 with Retry-After at once.
        example: A batch to warm up a replica, or batches by action; zeros by default, except for
            graphs that write.
        protected: Require an API key, see `raysys.gateway.create_key`.
        http: Body limit and response cache.
        gateway: Address and storage of the gateway.
        start_timeout_s: Time for the replicas to start.

    Raises:
        GraphError: No action, an invalid action, or an example for an unknown action.
        ResourceError: Not enough resources for the minimum number of replicas, or for the maximum
            if the cluster does not autoscale.
        RaysysError: The version cannot start; the message has the cause, and nothing has changed.
    """
    ray_serve.status  # noqa: B018 - loads Serve, which sets its logger's level
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    http, gateway = http or HTTPOptions(), gateway or GatewayOptions()
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise RaysysError(f"application name {name!r}: use letters, digits, _ and -")
    route = "/" + (name if route is None else route).strip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9_.~-]+)+", route) or f"{route}/".startswith("/v2/"):
        raise RaysysError(f"route {route!r}: give a path such as /{name}, not below /v2")
    graphs = graphs_by_action(name, graph)
    examples = warmup_examples(graphs, example)
    stages = [stage for action_graph in graphs.values() for stage in action_graph.plan.placed]
    _require(name, [Placement(replicas, cpus_per_replica), *(s.placement for s in stages)])
    actor = start_gateway(
        gateway.host, gateway.port, gateway.grpc_port, gateway.storage, gateway.max_source_share
    )
    try:
        address = ray.get(actor.address.remote())
    except ray.exceptions.RayTaskError as error:
        ray.kill(actor)
        raise cluster.task_error_cause(error) from None
    version, limits = ray.get(actor.next_version.remote(name)), batching or Batching()
    application = Application(
        name=name, version=version, route=route, graphs=graphs, batching=limits,
        deadline_s=deadline_s, max_body_bytes=http.max_body_bytes, cache_ttl_s=http.cache_ttl_s,
        ignore_unknown_fields=http.ignore_unknown_fields,
        examples=examples, protected=protected, token=address["token"],
    )  # fmt: skip
    audit.record(gateway.storage, "deploy", name, version=version, route=route, protected=protected)
    try:
        _start(application, replicas, cpus_per_replica, start_timeout_s)
        rows = sum(
            limits.queue_limit + action_graph.plan.in_flight * limits.max_batch_size
            for action_graph in graphs.values()
        )
        backend = Backend(
            name, version, route, deadline_s, http.max_body_bytes, protected, rows,
            http.cors_origins,
        )  # fmt: skip
        ray.get(actor.publish.remote(backend))
    except BaseException as error:
        _delete([_title(name, version)])
        cause = cluster.task_error_cause(error)
        if cause is not error and isinstance(cause, RaysysError):
            raise cause from None
        raise
    # Previous versions, and remains of interrupted deployments.
    titles = re.compile(rf"{re.escape(name)}-v\d+")
    running = filter(titles.fullmatch, ray_serve.status().applications)
    _delete([title for title in running if title != _title(name, version)])
    if key_value.ends_with_its_driver():
        note(
            f"the endpoint {name!r} ends with the process that started this cluster. For one that "
            "stays, start a cluster first: `raysys up`"
        )
    host, grpc_port = address["host"], address["grpc_port"]
    grpc_address = None if grpc_port is None else f"{host}:{grpc_port}"
    actions = tuple(graphs) if isinstance(graph, Mapping) else ()
    return Endpoint(name, version, f"http://{host}:{address['port']}", route, grpc_address, actions)


@checked
def undeploy(name: str) -> None:
    """Stop an application; its path is 404 from then on.

    Its replicas end in the background, once they have answered the requests they received.

    Raises:
        RaysysError: Unknown application.
    """
    actor = find_gateway()
    version = ray.get(actor.current_version.remote(name))
    if version is None:
        raise RaysysError(f"no running application {name!r}")
    audit.record(Storage(), "undeploy", name, version=version)
    ray.get(actor.withdraw.remote(name))
    _delete([_title(name, version)])


def shutdown() -> None:
    """Stop all applications, the gateway, and Serve."""
    audit.record(Storage(), "undeploy.all", "serve")
    ray_serve.shutdown()
    try:
        actor = find_gateway()
    except RaysysError:
        return
    ray.get(actor.stop.remote())
    ray.kill(actor)


def _delete(titles: list[str]) -> None:
    """Have Serve end versions, in the background: their last requests may take a while."""
    for title in titles:
        ray_serve.delete(title, _blocking=False)
    ray_serve.status()  # answered after the controller has received the above


def _require(name: str, placements: list[Placement]) -> None:
    """Check resources: for the minimum, and for the maximum if the cluster does not autoscale."""
    bounds = [replica_bounds(place.replicas) for place in placements]
    grows = any(minimum < maximum for minimum, maximum in bounds) and cluster.can_grow()
    counts = [minimum if grows else maximum for minimum, maximum in bounds]
    if (entries := bounds[0][1]) > SLOTS // 2:
        raise RaysysError(
            f"application {name!r} may have {entries} replicas: the gateway has {SLOTS} slots per "
            f"application, half of them for its next version; use at most {SLOTS // 2}"
        )
    cluster.require(
        f"application {name!r}",
        cpus=sum(count * place.cpus for count, place in zip(counts, placements, strict=True)),
        gpus=sum(count * place.gpus for count, place in zip(counts, placements, strict=True)),
    )


def _start(
    application: Application, replicas: int | Autoscaling, cpus: float, timeout_s: float
) -> None:
    """Start a version's deployments and wait until its replicas are ready."""
    actor, name, version = find_gateway(), application.name, application.version
    before = ray.get(actor.current_version.remote(name))
    running = ray.get(actor.replicas.remote(name, before)) if before is not None else 0
    title = _title(name, version)
    ray_serve.start(proxy_location="Disabled")
    deployment = _deployment(application, replicas, running, cpus)
    target = ray_serve.RunTarget(deployment, name=title, route_prefix=None)
    ray_serve.run_many([target], wait_for_applications_running=False)
    deadline = time.monotonic() + timeout_s
    while True:
        state = ray_serve.status().applications.get(title)
        status = state.status if state else "DEPLOYING"
        if status == "RUNNING":
            announced = ray.get(actor.replicas.remote(name, version))
            if announced >= initial_replicas(replicas, running):
                return
        if state and status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reasons = [part.message for part in state.deployments.values() if part.message]
            raise RaysysError(
                f"version {version} of {name!r} cannot start, and the previous version stays: "
                + "\n".join([state.message, *reasons])
            )
        if time.monotonic() > deadline:
            raise ResourceError(
                f"version {version} of {name!r} has not started within {timeout_s:g} s: "
                f"{state.message if state else 'unknown to Serve'}. It starts beside the previous "
                "version: are there resources for both?"
            )
        time.sleep(_POLL_S)


def _deployment(
    application: Application, replicas: int | Autoscaling, running: int, cpus: float
) -> Any:
    """The entry's deployment, bound to those of the placed stages."""
    from raysys.serve._replica import EntryReplica, NodeReplica

    max_entries = replica_bounds(replicas)[1]
    on_demand = {"label_selector": cluster.ON_DEMAND_ONLY}
    shared = {
        # Serve's default is ten seconds, in which a dead replica is not replaced.
        "health_check_period_s": 1.0,
        "health_check_timeout_s": 30.0,
        "graceful_shutdown_timeout_s": application.deadline_s + 10,
        "graceful_shutdown_wait_loop_s": 0.2,
        "max_constructor_retry_count": _START_ATTEMPTS,
    }

    def placed(action: str, stage: GraphStage, in_flight: int) -> Any:
        place = stage.placement
        return ray_serve.deployment(
            NodeReplica,
            # Action names have no dots, so deployment names are unique.
            name=f"{action}.{stage.name}" if action else stage.name,
            **deployment_options(place.replicas, 0),
            ray_actor_options={"num_cpus": place.cpus, "num_gpus": place.gpus, **on_demand},
            # All batches in flight of all entries: with Serve's default of 5 they would queue.
            max_ongoing_requests=max(5, 2 * max_entries * in_flight),
            **shared,
        ).bind(application, action, stage.name)

    handles = {
        action: {
            stage.name: placed(action, stage, graph.plan.in_flight) for stage in graph.plan.placed
        }
        for action, graph in application.graphs.items()
    }
    return ray_serve.deployment(
        EntryReplica,
        name=ENTRY,
        **deployment_options(replicas, running),
        ray_actor_options={"num_cpus": cpus, **on_demand},
        user_config={"models": stored_models(application.graphs.values())},
        **shared,
    ).bind(application.without_functions(), cloudpickle.dumps(application), handles)


def _title(name: str, version: int) -> str:
    """A version's application name in Serve and in the dashboard."""
    return f"{name}-v{version}"
