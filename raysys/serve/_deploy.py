"""A graph behind HTTP: one Ray Serve application, batched on the server."""

# No postponed annotations here: FastAPI reads the types of a handler that is made in a function.
import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel

from raysys.serve._graph import Graph


@dataclass(frozen=True)
class Endpoint:
    """A running application."""

    base_url: str
    route: str

    @property
    def url(self) -> str:
        """Where requests are posted."""
        return self.base_url + self.route

    @property
    def docs_url(self) -> str:
        """The OpenAPI form."""
        return f"{self.base_url}/docs"

    def ask(self, request: dict[str, Any], timeout_s: float = 30.0) -> dict[str, Any]:
        """Post one request and return its answer."""
        call = urllib.request.Request(
            self.url, json.dumps(request).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(call, timeout=timeout_s) as reply:
            return json.load(reply)

    def curl(self, request: dict[str, Any]) -> str:
        """The same as a line for the shell."""
        header = "Content-Type: application/json"
        return f"curl -s {self.url} -H '{header}' -d '{json.dumps(request)}'"


def deploy(
    name: str,
    build: Callable[[], Graph],
    *,
    route: str,
    request: type[BaseModel],
    response: type[BaseModel],
    prefix: str = "/",
    replicas: int = 1,
    cpus_per_replica: float = 1.0,
    max_batch_size: int = 64,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> Endpoint:
    """Deploy a graph as an HTTP application, replacing the one of that name when it is ready.

    `POST <route>` takes one request and answers one response. Requests that wait while the
    graph is busy make the next batch, so a lone request waits for nothing. A request that does
    not fit its model gets 422 with the field named, before it joins a batch. `GET /healthz`
    says that a replica answers, `/docs` shows the OpenAPI form.

    Args:
        name: The application's name in Serve.
        build: Makes the graph, once in each replica. The graph's inputs are the request's
            fields, as NumPy arrays `(n,)`; it answers one dict of response fields a request.
        route: Path of the endpoint.
        request: Model of one request.
        response: Model of one answer.
        prefix: Where the application stands on the cluster's proxy; each has its own.
        replicas: Number of replicas.
        cpus_per_replica: Logical CPUs of each.
        max_batch_size: Requests in a batch at most.
        host: Interface that the proxy binds, if this call starts Serve.
        port: Port of the proxy, if this call starts Serve.
    """
    from ray import serve

    serve.start(http_options={"host": host, "port": port})
    server = serve.deployment(
        name=name,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus_per_replica},
        # Serve's default of 5 starves the batcher: let in enough to fill the next batch too.
        max_ongoing_requests=2 * max_batch_size,
        # By default Serve stops the old replicas first, and a redeployment is an outage.
        max_surge_percent=100,
    )(_server(name, build, route, request, response, max_batch_size))
    serve.run(server.bind(), name=name, route_prefix=prefix)
    # Serve keeps the address that it was first started with, whatever is asked for later.
    listening = serve.context._get_global_client().http_config
    base = f"http://{listening.host}:{listening.port}{prefix}"
    return Endpoint(base.rstrip("/"), route)


def _server(
    name: str,
    build: Callable[[], Graph],
    route: str,
    request: type[BaseModel],
    response: type[BaseModel],
    max_batch_size: int,
) -> type:
    """The replica's class: a FastAPI application in front of a batched graph."""
    from fastapi import FastAPI
    from ray import serve
    from ray.util import metrics

    app = FastAPI(title=name)

    @serve.ingress(app)
    class Server:
        def __init__(self) -> None:
            self._graph = build()
            tags = {"application": name}
            self._batch_size = metrics.Histogram(
                "raysys_serve_batch_size",
                "Requests answered by one run of the graph",
                boundaries=[1, 2, 4, 8, 16, 32, 64, 128],
                tag_keys=("application",),
            )
            self._latency_ms = metrics.Histogram(
                "raysys_serve_graph_latency_ms",
                "Time of one run of the graph over a batch",
                boundaries=[1, 2, 5, 10, 20, 50, 100, 200, 500],
                tag_keys=("application",),
            )
            self._batch_size.set_default_tags(tags)
            self._latency_ms.set_default_tags(tags)

        @serve.batch(max_batch_size=max_batch_size, batch_wait_timeout_s=0.0)
        async def _run(self, requests: list[BaseModel]) -> Sequence[dict[str, Any]]:
            started = time.perf_counter()
            columns = {
                field: np.array([getattr(one, field) for one in requests])
                for field in request.model_fields
            }
            # In a thread: the event loop goes on taking the requests of the next batch.
            answers = await asyncio.to_thread(self._graph, columns)
            self._batch_size.observe(len(requests))
            self._latency_ms.observe(1000 * (time.perf_counter() - started))
            return answers

        @app.post(route, response_model=response)
        async def answer(self, body: request) -> Any:  # type: ignore[valid-type]
            return await self._run(body)

        @app.get("/healthz")
        async def healthz(self) -> dict[str, str]:
            return {"status": "ok"}

    return Server
