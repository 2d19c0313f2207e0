"""Serve replicas: the entry, with an HTTP server of its own, and nodes placed elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import functools
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

from raysys.errors import GraphError, RaysysError
from raysys.gateway import ANNOUNCE_S, Announcement, find_gateway
from raysys.serve._autoscaling import LOAD, LoadEstimator
from raysys.serve._batcher import Batcher
from raysys.serve._graph_worker import as_exception, set_up_process
from raysys.serve._graph_workers import GraphWorkers
from raysys.serve._metrics import Metrics
from raysys.serve._plan_executor import PlanExecutor
from raysys.serve._request_context import RequestContext, running_requests

if TYPE_CHECKING:
    from raysys.serve._application import Application
    from raysys.serve._column_types import Columns
    from raysys.serve._outputs import Outputs

_STUCK_S = 20.0
# Limit of all long bodies at the same time: so many of the largest size.
_BODIES, _BODIES_BYTES = 6, 64 << 20
# Processor utilization of the machine; two thresholds, since batching for a crowd frees time.
_CROWDED_PERCENT, _CALM_PERCENT = 85.0, 60.0
_log = logging.getLogger("raysys.serve")


class NodeReplica:
    """A replica of nodes with a placement."""

    def __init__(self, application: Application, action: str, stage: str) -> None:
        set_up_process()
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
        try:
            with running_requests(contexts):
                results = self._graph.run(step.nodes, values, self._metrics.node)
        except Exception:
            raise
        except BaseException as error:  # sys.exit() in a node ends its request alone
            raise as_exception(error) from error
        self._load.batch(1, time.perf_counter() - started)
        return {name: results[name] for name in step.gives}


class EntryReplica:
    """A replica that receives requests: an HTTP server of its own beside Serve's machinery.

    Serve starts, watches, scales and replaces it; requests do not pass through Serve.
    """

    def __init__(
        self, application: Application, nodes: bytes, handles: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Start to listen.

        Args:
            application: Definition without functions.
            nodes: The whole definition, pickled, for the processes that run the nodes.
            handles: Handles of placed stages, by action.
        """
        set_up_process()
        self._application, graphs = application, application.graphs
        self._workers = GraphWorkers(application, nodes)
        self._metrics = {action: Metrics(application.name, action) for action in graphs}
        rows = application.batching.max_batch_size
        self._loads = {
            action: LoadEstimator(rows, graph.plan.in_flight) for action, graph in graphs.items()
        }
        self._loop_load = 0.0
        self._executors = {
            action: PlanExecutor(
                graph,
                handles[action],
                functools.partial(self._workers.run, action),
                self._loads[action],
            )
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
        failure = self._failure or self._workers.failure
        if failure or silent_s > _STUCK_S:
            raise RaysysError(
                f"the HTTP server has not responded for {silent_s:.0f} s ({failure!r})"
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
        from raysys.serve.http._body_budget import BodyBudget
        from raysys.serve.http._routes import Router
        from raysys.serve.http._server import Connection

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
                patience_s=functools.partial(self._workers.patience_s, action),
                can_overtake=self._workers.has_idle,
            )
            for action, graph in application.graphs.items()
        }
        await self._workers.start()
        examples = {action: await self._warm_up(action) for action in application.graphs}
        read = {
            action: functools.partial(self._workers.read, action) for action in application.graphs
        }
        router = Router(application, self._batchers, self._metrics, examples, read)
        self._stop = asyncio.Event()
        budget = BodyBudget(max(_BODIES_BYTES, _BODIES * application.max_body_bytes))
        server = await self._loop.create_server(
            lambda: Connection(router.handle, application.max_body_bytes, budget),
            sock=self._socket,
        )
        background = [asyncio.create_task(self._announce()), asyncio.create_task(budget.watch())]
        await self._stop.wait()
        for task in background:
            task.cancel()
        server.close()
        self._workers.stop()

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
                batcher.is_crowded = is_crowded
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
