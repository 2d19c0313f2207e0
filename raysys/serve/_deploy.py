"""Putting a graph behind HTTP, version after version."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray

from raysys import audit, cluster
from raysys.errors import RaysysError, ResourceError
from raysys.gateway import SLOTS, Backend, find_gateway, start_gateway
from raysys.serve._application import Application, examples_of, graphs_of
from raysys.serve._autoscaling import Scale, begin, bounds, options
from raysys.serve._batcher import Batching
from raysys.serve._compiler import ENTRY
from raysys.serve._endpoint import Endpoint
from raysys.serve._nodes import Placement
from raysys.storage import Storage

if TYPE_CHECKING:
    from raysys.serve._compiler import Stage
    from raysys.serve._graph import Graph

_START_ATTEMPTS = 3
_POLL_S = 0.1


def deploy(
    name: str,
    graph: Graph | Mapping[str, Graph],
    *,
    route: str | None = None,
    replicas: int | Scale = 1,
    cpus_per_replica: float = 1.0,
    batching: Batching | None = None,
    deadline_s: float = 10.0,
    max_body_bytes: int = 16 << 20,
    cache_s: float = 0.0,
    example: Mapping[str, Any] | None = None,
    protected: bool = False,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = None,
    storage: Storage | None = None,
    start_timeout_s: float = 300.0,
) -> Endpoint:
    """Put a graph behind HTTP, in place of the version that runs under its name.

    `POST <route>` takes one request as JSON and answers one response, or takes and gives Arrow
    IPC streams of many rows; `/v2/models/<name>/infer` speaks the Open Inference Protocol. See
    `<route>/docs`.

    Several graphs are the actions of one application: they share its replicas, its route and its
    docs, and each batches its own requests. An action answers at `<route>/<action>`, and in the
    Open Inference Protocol, over HTTP and gRPC, as the model `<name>/<action>`. Actions run at
    the same time, so what two of them share, such as the object of a Lazy, must bear two threads.
    Nodes with a placement have a deployment for each action.

    The new version's replicas start beside the old ones and have run an example before requests go
    to them; no request fails on the way, and if the new version cannot start the old one stays. A
    request whose replica dies is sent to another, so nodes may run twice for one request.

    Args:
        name: Of the application: letters, digits, `_` and `-`.
        graph: What answers; or graphs by the names of their actions: letters, digits, `_`, `-`.
        route: Path of requests; `/<name>` by default.
        replicas: Of the entry; a `Scale` lets them follow the load. Nodes with a placement have
            their own.
        cpus_per_replica: Logical CPUs of each.
        batching: How requests are brought together; holds for each action by itself.
        deadline_s: Time for an answer, 504 after it; the header `x-request-timeout-seconds` asks
            for less. What could not be answered in time gets 503 with Retry-After at once.
        max_body_bytes: Of a request, 413 beyond.
        cache_s: How long the answer to a JSON body is kept and given again; 0 keeps none. Graphs
            that write are always run.
        example: A batch to warm a replica up with, for several graphs one for each action; zeros
            by default, except for graphs that write.
        protected: Wants an API key, see `create_key`.
        host: Interface of the gateway, if this call starts it.
        port: Of the gateway, if this call starts it.
        grpc_port: Of the Open Inference Protocol over gRPC, if this call starts the gateway;
            None serves none.
        storage: Where the gateway finds API keys, if this call starts it; the default root.
        start_timeout_s: Time for the replicas to start.

    Raises:
        GraphError: An action has a name that will not do or is no graph, there is none, or an
            example is of none.
        ResourceError: The cluster has no room for it: for the least replicas, and for the most
            if it cannot grow.
        RaysysError: It cannot start; the message says why, and nothing has changed.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise RaysysError(f"application name {name!r}: use letters, digits, _ and -")
    route = "/" + (name if route is None else route).strip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9_.~-]+)+", route) or f"{route}/".startswith("/v2/"):
        raise RaysysError(f"route {route!r}: give a path such as /{name}, not below /v2")
    graphs = graphs_of(name, graph)
    examples = examples_of(graphs, example)
    placed = [
        stage.placement
        for one in graphs.values()
        for stage in one.plan.stages.values()
        if stage.name != ENTRY
    ]
    _require(name, [Placement(replicas, cpus_per_replica), *placed])
    front = start_gateway(host, port, grpc_port, storage or Storage())
    try:
        address = ray.get(front.address.remote())
    except ray.exceptions.RayTaskError as error:
        ray.kill(front)
        raise cluster.task_error_cause(error) from None
    application = Application(
        name=name,
        version=ray.get(front.next_version.remote(name)),
        route=route,
        graphs=graphs,
        batching=batching or Batching(),
        deadline_s=deadline_s,
        max_body_bytes=max_body_bytes,
        cache_s=cache_s,
        examples=examples,
        protected=protected,
        token=address["token"],
    )
    version = application.version
    audit.record(
        storage or Storage(), "deploy", name, version=version, route=route, protected=protected
    )
    try:
        _start(application, replicas, cpus_per_replica, start_timeout_s)
        most = application.batching
        rows = sum(
            most.rows_queued + one.plan.in_flight * most.max_batch_size for one in graphs.values()
        )
        backend = Backend(name, version, route, deadline_s, max_body_bytes, protected, rows)
        ray.get(front.publish.remote(backend))
    except BaseException as error:
        _delete(name, version)
        cause = cluster.task_error_cause(error)
        if cause is not error and isinstance(cause, RaysysError):
            raise cause from None
        raise
    _delete_others(name, version)
    grpc = address["grpc_port"]
    return Endpoint(
        name,
        version,
        f"http://{address['host']}:{address['port']}",
        route,
        None if grpc is None else f"{address['host']}:{grpc}",
        tuple(graphs) if isinstance(graph, Mapping) else (),
    )


def undeploy(name: str) -> None:
    """End an application; its path is 404 from now on.

    Raises:
        RaysysError: There is none of that name.
    """
    front = find_gateway()
    version = ray.get(front.current_version.remote(name))
    if version is None:
        raise RaysysError(f"no application {name!r} runs")
    audit.record(Storage(), "undeploy", name, version=version)
    ray.get(front.withdraw.remote(name))
    _delete(name, version)


def shutdown() -> None:
    """End all applications, the gateway, and Serve."""
    from ray import serve

    audit.record(Storage(), "undeploy.all", "serve")
    serve.shutdown()
    try:
        front = find_gateway()
    except RaysysError:
        return
    ray.get(front.stop.remote())
    ray.kill(front)


def _require(name: str, places: list[Placement]) -> None:
    """Check that there is room: for the least replicas, and for the most if no node can come."""
    ranges = [bounds(place.replicas) for place in places]
    grows = any(least < most for least, most in ranges) and cluster.can_grow()
    counts = [least if grows else most for least, most in ranges]
    if (most := ranges[0][1]) > SLOTS // 2:
        raise RaysysError(
            f"application {name!r} may have {most} replicas: the gateway has {SLOTS} places for "
            f"an application, half of them for its next version; ask for {SLOTS // 2} at most"
        )
    cluster.require(
        f"application {name!r}",
        cpus=sum(count * place.cpus for count, place in zip(counts, places, strict=True)),
        gpus=sum(count * place.gpus for count, place in zip(counts, places, strict=True)),
    )


def _start(application: Application, replicas: int | Scale, cpus: float, timeout_s: float) -> None:
    """Start a version's deployments and wait until its replicas take requests."""
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    from raysys.serve._replica import EntryReplica, NodeReplica

    front, name = find_gateway(), application.name
    before = ray.get(front.current_version.remote(name))
    running = ray.get(front.replicas.remote(name, before)) if before is not None else 0
    first, most = begin(replicas, running), bounds(replicas)[1]
    shared = {
        # Serve looks every ten seconds by default, and leaves a dead replica's place empty.
        "health_check_period_s": 1.0,
        "health_check_timeout_s": 30.0,
        "graceful_shutdown_timeout_s": application.deadline_s + 10,
        "graceful_shutdown_wait_loop_s": 0.2,
        "max_constructor_retry_count": _START_ATTEMPTS,
    }

    def placed(action: str, stage: Stage) -> Any:
        place = stage.placement
        return serve.deployment(
            NodeReplica,
            # No action's name has a dot, so that no two deployments have the same name.
            name=f"{action}.{stage.name}" if action else stage.name,
            **options(place.replicas, 0),
            ray_actor_options={
                "num_cpus": place.cpus,
                "num_gpus": place.gpus,
                "label_selector": cluster.ON_DEMAND_ONLY,
            },
            # Every batch that the entries keep under way: with Serve's default of 5 they queue.
            max_ongoing_requests=max(5, 2 * most * application.graphs[action].plan.in_flight),
            **shared,
        ).bind(application, action, stage.name)

    handles = {
        action: {
            stage.name: placed(action, stage)
            for stage in graph.plan.stages.values()
            if stage.name != ENTRY
        }
        for action, graph in application.graphs.items()
    }
    entry = serve.deployment(
        EntryReplica,
        name=ENTRY,
        **options(replicas, running),
        ray_actor_options={"num_cpus": cpus, "label_selector": cluster.ON_DEMAND_ONLY},
        **shared,
    ).bind(application, handles)
    serve.start(proxy_location="Disabled")
    title = _title(application.name, application.version)
    target = serve.RunTarget(entry, name=title, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)
    deadline = time.monotonic() + timeout_s
    while True:
        found = serve.status().applications.get(title)
        status = found.status if found else ApplicationStatus.DEPLOYING
        if status == ApplicationStatus.RUNNING:
            there = ray.get(front.replicas.remote(application.name, application.version))
            if there >= first:
                return
        if found and status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            why = "\n".join(one.message for one in found.deployments.values() if one.message)
            raise RaysysError(
                f"version {application.version} of {application.name!r} cannot start, and the "
                f"version before it stays: {found.message}\n{why}"
            )
        if time.monotonic() > deadline:
            raise ResourceError(
                f"version {application.version} of {application.name!r} has not started within "
                f"{timeout_s:g} s: {found.message if found else 'Serve does not know it'}. It "
                "starts beside the version before: is there room for both?"
            )
        time.sleep(_POLL_S)


def _delete(name: str, version: int) -> None:
    from ray import serve

    serve.delete(_title(name, version))


def _delete_others(name: str, version: int) -> None:
    """The versions before, and what an interrupted deployment left."""
    from ray import serve

    titles = re.compile(rf"{re.escape(name)}-v\d+")
    for title in serve.status().applications:
        if titles.fullmatch(title) and title != _title(name, version):
            serve.delete(title)


def _title(name: str, version: int) -> str:
    """A version's name in Serve and in the dashboard."""
    return f"{name}-v{version}"
