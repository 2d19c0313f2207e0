"""Serve replicas: the entry, with an HTTP server of its own, and nodes placed elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psutil
import ray
import uvloop
from ray.exceptions import RayActorError

from raysys.cluster import raise_priority
from raysys.errors import GraphError, RaysysError
from raysys.gateway import ANNOUNCE_S, Announcement, find_gateway
from raysys.serve._autoscaling import LOAD, LoadEstimator
from raysys.serve._batcher import Batcher
from raysys.serve._compiler import ENTRY
from raysys.serve._metrics import Metrics
from raysys.serve._plan_executor import PlanExecutor
from raysys.serve._request_context import RequestContext, current_requests, running_requests
from raysys.telemetry import logs

if TYPE_CHECKING:
    from raysys.serve._application import Application
    from raysys.serve._column_types import Columns
    from raysys.serve._outputs import Outputs

_STUCK_S = 20.0
# Processor utilization of the machine; two thresholds, since batching for a crowd frees time.
_CROWDED_PERCENT, _CALM_PERCENT = 85.0, 60.0
_log = logging.getLogger("raysys.serve")


def _set_up_process() -> None:
    raise_priority()
    logs.set_up()
    logs.add_source("request_ids", lambda: [request.request_id for request in current_requests()])


class NodeReplica:
    """A replica of nodes with a placement."""

    def __init__(self, application: Application, action: str, stage: str) -> None:
        _set_up_process()
        self._graph = application.graphs[action]
        self._metrics = Metrics(application.name, action)
        self._graph.load(self._graph.plan.stages[stage].nodes)
        self._load = LoadEstimator(1)  # its unit is the batch, since it receives whole batches

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve if the deployment has `Autoscaling`."""
        return {LOAD: self._load.load()}

    def run(self, number: int, values: Columns, contexts: tuple[RequestContext, ...]) -> Columns:
        """Run a step over a batch."""
        step, started = self._graph.plan.steps[number], time.perf_counter()
        with running_requests(contexts):
            results = self._graph.run(step.nodes, values, self._metrics.node)
        self._load.batch(1, time.perf_counter() - started)
        return {name: results[name] for name in step.gives}


class EntryReplica:
    """A replica that receives requests: an HTTP server of its own beside Serve's machinery.

    Serve starts, watches, scales and replaces it; requests do not pass through Serve.
    """

    def __init__(self, application: Application, handles: Mapping[str, Mapping[str, Any]]) -> None:
        """Load the nodes and start to listen; `handles` are those of placed stages, by action."""
        _set_up_process()  # before threads start: a thread inherits the priority
        self._application, graphs = application, application.graphs
        for graph in graphs.values():
            graph.load(graph.plan.stages[ENTRY].nodes)
        gc.collect()
        gc.freeze()  # otherwise each full collection walks all objects of the models' libraries
        self._metrics = {action: Metrics(application.name, action) for action in graphs}
        rows = application.batching.max_batch_size
        self._loads = {
            action: LoadEstimator(rows, graph.plan.in_flight) for action, graph in graphs.items()
        }
        self._loop_load = 0.0
        self._executors = {
            action: PlanExecutor(graph, handles[action], self._metrics[action], self._loads[action])
            for action, graph in graphs.items()
        }
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._stopping = False
        self._heartbeat = time.monotonic()
        self._gateway = find_gateway()
        self._host = ray.get(self._gateway.replica_host.remote(ray.util.get_node_ip_address()))
        self._socket = socket.create_server((self._host, 0), backlog=2048)
        threading.Thread(target=self._serve, name="http", daemon=True).start()
        self._ready.wait()
        if self._failure:
            raise self._failure

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Called by Serve with what `raysys status` shows of the deployment."""

    def check_health(self) -> None:
        """Called by Serve each second.

        Raises:
            RaysysError: The server has ended or its event loop hangs; Serve replaces the replica.
        """
        silent_s = time.monotonic() - self._heartbeat
        if self._failure or silent_s > _STUCK_S:
            raise RaysysError(
                f"the HTTP server has not responded for {silent_s:.0f} s ({self._failure!r})"
            )

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve if the deployment has `Autoscaling`."""
        loads = (load.load(self._batchers[name].rows_queued) for name, load in self._loads.items())
        return {LOAD: max(self._loop_load, *loads)}

    async def __del__(self) -> None:
        """Called by Serve before the replica is stopped: deregister, finish pending requests."""
        if not hasattr(self, "_loop"):
            return
        self._stopping = True
        with contextlib.suppress(RayActorError):  # the gateway is gone too
            await self._gateway.leave.remote(self._application.name, self._id)
        for batcher in self._batchers.values():
            drained = asyncio.run_coroutine_threadsafe(batcher.drain(), self._loop)
            await asyncio.wrap_future(drained)
        self._loop.call_soon_threadsafe(self._stop.set)

    def _serve(self) -> None:
        try:
            uvloop.run(self._main())
        except BaseException as error:
            _log.exception("the HTTP server ended")
            self._failure = error
        self._ready.set()

    async def _main(self) -> None:
        from raysys.serve._http_server import Connection
        from raysys.serve._routes import Router

        self._loop = asyncio.get_running_loop()
        self._id = ray.get_runtime_context().get_actor_id()
        application = self._application
        self._batchers = {
            action: Batcher(
                self._executors[action],
                graph.inputs,
                application.batching,
                in_flight=graph.plan.in_flight,
                observe=self._metrics[action].batch,
                writes=graph.writes,
            )
            for action, graph in application.graphs.items()
        }
        examples = {action: await self._warm_up(action) for action in application.graphs}
        router = Router(application, self._batchers, self._metrics, examples)
        self._stop = asyncio.Event()
        server = await self._loop.create_server(
            lambda: Connection(router.handle, application.max_body_bytes), sock=self._socket
        )
        announcing = asyncio.create_task(self._announce())
        await self._stop.wait()
        announcing.cancel()
        server.close()

    async def _warm_up(self, action: str) -> Outputs | None:
        """Run the example, so that the first request finds everything loaded."""
        graph, examples = self._application.graphs[action], self._application.examples
        if action not in examples:
            columns = {name: kind.zeros(1) for name, kind in graph.inputs.items()}
        elif (example := examples[action]) is None:
            return None
        else:
            columns = graph.check_columns(example)
        try:
            return await self._executors[action](columns, ())
        except Exception as error:
            if action in examples or isinstance(error, GraphError):
                raise
            which = f"the graph of action {action!r}" if action else "the graph"
            _log.warning("%s failed on zeros: give an example to warm up with", which)
            return None

    async def _announce(self) -> None:
        """Report to the gateway every second, so that a restarted gateway learns its replicas."""
        app, port = self._application, self._socket.getsockname()[1]
        announcement = Announcement(app.name, app.version, self._id, self._host, port)
        is_crowded, worked_s = False, time.thread_time()
        refused = dict.fromkeys(self._batchers, 0)
        while True:
            before, before_s = self._heartbeat, worked_s
            self._heartbeat, worked_s = time.monotonic(), time.thread_time()
            # Of this thread, which reads requests and writes responses.
            self._loop_load = (worked_s - before_s) / max(ANNOUNCE_S, self._heartbeat - before)
            is_crowded = psutil.cpu_percent() > (_CALM_PERCENT if is_crowded else _CROWDED_PERCENT)
            capacity = 0
            for action, batcher in self._batchers.items():
                self._metrics[action].queue(batcher.rows_queued, batcher.refused)
                self._executors[action].is_crowded = batcher.is_crowded = is_crowded
                capacity += batcher.capacity(app.deadline_s)
                if batcher.refused > refused[action]:
                    _log.warning(
                        "%d requests refused: they would exceed deadline_s=%g, or the queue holds "
                        "max_queued_rows=%d",
                        batcher.refused - refused[action], app.deadline_s,
                        app.batching.queue_limit,
                    )  # fmt: skip
                    refused[action] = batcher.refused
            if not self._stopping:
                try:
                    counts = {
                        app.model(action): metrics.statistics.counts()
                        for action, metrics in self._metrics.items()
                    }
                    announced = self._gateway.announce.remote(announcement, capacity, counts)
                    await asyncio.wrap_future(announced.future())
                    self._ready.set()
                except Exception as error:  # the gateway is restarting
                    _log.warning("the gateway does not respond: %r", error)
            await asyncio.sleep(ANNOUNCE_S)
