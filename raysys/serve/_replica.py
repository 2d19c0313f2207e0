"""What runs in Serve's replicas: the entry, which answers HTTP, and nodes placed elsewhere."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import math
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import ray
import uvloop
from ray.exceptions import RayActorError, RayTaskError

from raysys.cluster import raise_priority, task_error_cause
from raysys.errors import RaysysError
from raysys.gateway import ANNOUNCE_S, Announcement, find_gateway
from raysys.serve._autoscaling import LOAD
from raysys.serve._batcher import Batcher, RequestContext, current_requests, requests_running
from raysys.serve._compiler import ENTRY, Step
from raysys.serve._metrics import Metrics
from raysys.serve._outputs import Answers, answers_of
from raysys.serve._utilization import Load
from raysys.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raysys.serve._application import Application
    from raysys.serve._column_types import Columns
    from raysys.serve._graph import Graph

_HOP_ATTEMPTS = 4
_PATIENCE_S, _PATIENCE_HOPS = 1.0, 5.0
_STUCK_S = 20.0
_BRIEF_S = 0.002
# Of the machine's processor time; two bounds, since what a crowd brings about makes room.
_CROWDED_PERCENT, _CALM_PERCENT = 85.0, 60.0
_SMOOTHING = 8  # batches
_log = logging.getLogger("raysys.serve")


def _begin() -> None:
    """What each replica's process does at its start."""
    raise_priority()
    logs.start()
    logs.add_source("request_ids", lambda: [one.request_id for one in current_requests()])


class NodeReplica:
    """A deployment of nodes that asked for one."""

    def __init__(self, application: Application, action: str, stage: str) -> None:
        _begin()
        self._graph = application.graphs[action]
        self._metrics = Metrics(application.name, action)
        self._graph.load(self._graph.plan.stages[stage].nodes)
        self._load = Load(1)  # its unit is the batch: what comes is one already

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve where the deployment has a `Scale`."""
        return {LOAD: self._load.share()}

    def run(self, number: int, values: Columns, contexts: tuple[RequestContext, ...]) -> Columns:
        """Run a step over a batch."""
        step, started = self._graph.plan.steps[number], time.perf_counter()
        with requests_running(contexts):
            made = self._graph.run(step.nodes, values, self._metrics.node)
        self._load.batch(1, time.perf_counter() - started)
        return {name: made[name] for name in step.gives}


class Runner:
    """Takes a batch through the plan's steps: the entry's here, others by Serve's handles.

    Steps of the entry run in threads, so that requests are read meanwhile. If no core is idle a
    thread only adds switching, so brief steps then run on the event loop.

    Attributes:
        is_crowded: Whether no core of the machine is idle; told from outside.
    """

    def __init__(
        self, graph: Graph, handles: Mapping[str, Any], metrics: Metrics, load: Load
    ) -> None:
        self._load = load
        self._graph, self._handles, self._metrics = graph, handles, metrics
        self._steps = graph.plan.steps
        self.is_crowded = False
        self._seconds: dict[tuple[str, ...], float] = {}  # that a step takes, smoothed
        self._hop_s: dict[int, float] = {}  # the same of steps that run elsewhere
        self._threads = concurrent.futures.ThreadPoolExecutor(
            graph.plan.in_flight, thread_name_prefix="graph"
        )

    async def __call__(self, columns: Columns, contexts: tuple[RequestContext, ...]) -> Answers:
        """Answer a batch."""
        rows, spent = len(next(iter(columns.values()))), list[float]()
        if len(self._steps) == 1 and self._steps[0].stage == ENTRY:
            values = await self._local(self._steps[0], columns, contexts, spent)
        else:
            values = await self._all(columns, contexts, spent)
        self._load.batch(rows, sum(spent))
        return answers_of(self._graph.output, values[self._graph.output], rows)

    async def _all(
        self, columns: Columns, contexts: tuple[RequestContext, ...], spent: list[float]
    ) -> Columns:
        """Each step as soon as those before it have ended."""
        values = dict(columns)
        tasks: list[asyncio.Task[None]] = []

        async def take(number: int, step: Step) -> None:
            await asyncio.gather(*(tasks[before] for before in step.after))
            needs = {name: values[name] for name in step.needs}
            if step.stage == ENTRY:
                values.update(await self._local(step, needs, contexts, spent))
            else:
                values.update(await self._remote(number, step, needs, contexts))

        try:
            async with asyncio.TaskGroup() as group:
                for number, step in enumerate(self._steps):
                    tasks.append(group.create_task(take(number, step)))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None  # the others were only cut short
        return values

    async def _local(
        self, step: Step, values: Columns, contexts: tuple[RequestContext, ...],
        spent: list[float],
    ) -> Columns:  # fmt: skip
        if self.is_crowded and self._seconds.get(step.nodes, math.inf) < _BRIEF_S:
            return self._run(step, values, contexts, spent)
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._run, step, values, contexts, spent
        )

    def _run(
        self, step: Step, values: Columns, contexts: tuple[RequestContext, ...],
        spent: list[float],
    ) -> Columns:  # fmt: skip
        started = time.perf_counter()
        with requests_running(contexts):
            made = self._graph.run(step.nodes, values, self._metrics.node)
        seconds = time.perf_counter() - started
        spent.append(seconds)
        before = self._seconds.get(step.nodes, seconds)
        self._seconds[step.nodes] = before + (seconds - before) / _SMOOTHING
        return made

    async def _remote(
        self, number: int, step: Step, values: Columns, contexts: tuple[RequestContext, ...]
    ) -> Columns:
        """One object there, one back, from a second replica if the first is long about it.

        One behind a link that is cut is silent until Ray gives its node up, which takes a minute.
        """
        hop = asyncio.create_task(self._hop(number, step, values, contexts))
        patience_s = max(_PATIENCE_S, _PATIENCE_HOPS * self._hop_s.get(number, math.inf))
        await asyncio.wait([hop], timeout=None if math.isinf(patience_s) else patience_s)
        if hop.done():
            return hop.result()
        _log.warning("%s is silent for %.1f s; its batch goes to another", step.stage, patience_s)
        hops = {hop, asyncio.create_task(self._hop(number, step, values, contexts))}
        while True:
            ended, hops = await asyncio.wait(hops, return_when=asyncio.FIRST_COMPLETED)
            for one in ended:
                if one.exception() is None or not hops:
                    for other in hops:
                        other.add_done_callback(asyncio.Task.exception)  # nobody waits for it
                    return one.result()

    async def _hop(
        self, number: int, step: Step, values: Columns, contexts: tuple[RequestContext, ...]
    ) -> Columns:
        """One object there, one back; a replica that dies costs another attempt."""
        for attempt in range(1, _HOP_ATTEMPTS + 1):
            started = time.perf_counter()
            try:
                made = await self._handles[step.stage].run.remote(number, values, contexts)
                seconds = time.perf_counter() - started
                before = self._hop_s.get(number, seconds)
                self._hop_s[number] = before + (seconds - before) / _SMOOTHING
                return made
            except RayTaskError as error:
                raise task_error_cause(error) from None  # what the node itself said
            except RayActorError as error:
                if attempt == _HOP_ATTEMPTS:
                    raise
                _log.warning(
                    "a replica of %s died under a batch; attempt %d of %d follows (%s)",
                    step.stage, attempt + 1, _HOP_ATTEMPTS, type(error).__name__,
                )  # fmt: skip
        raise AssertionError


class EntryReplica:
    """The deployment that requests come to: an HTTP server of its own beside Serve's machinery.

    Serve starts, watches, scales and replaces it; requests do not pass through Serve.
    """

    def __init__(self, application: Application, handles: Mapping[str, Mapping[str, Any]]) -> None:
        """Load what the nodes need and start to listen.

        Args:
            application: What is served.
            handles: Of the placed stages, by action and stage.
        """
        _begin()  # before threads start: a thread keeps the priority that it was started with
        self._application = application
        for graph in application.graphs.values():
            graph.load(graph.plan.stages[ENTRY].nodes)
        gc.collect()
        gc.freeze()  # else each full collection walks all that the models' libraries imported
        self._metrics = {action: Metrics(application.name, action) for action in handles}
        rows = application.batching.max_batch_size
        self._loads = {
            action: Load(rows, graph.plan.in_flight) for action, graph in application.graphs.items()
        }
        self._loop_share = 0.0
        self._runners = {
            action: Runner(
                application.graphs[action], of_action, self._metrics[action], self._loads[action]
            )
            for action, of_action in handles.items()
        }
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._stopping = False
        self._beat = time.monotonic()
        self._gateway = find_gateway()
        self._host = ray.get(self._gateway.replica_host.remote(ray.util.get_node_ip_address()))
        self._socket = socket.create_server((self._host, 0), backlog=2048)
        threading.Thread(target=self._serve, name="http", daemon=True).start()
        self._ready.wait()
        if self._failure:
            raise self._failure

    def check_health(self) -> None:
        """Called by Serve each second.

        Raises:
            RaysysError: The server has ended or its event loop is stuck; Serve starts another.
        """
        silent_s = time.monotonic() - self._beat
        if self._failure or silent_s > _STUCK_S:
            raise RaysysError(f"the HTTP server is silent for {silent_s:.0f} s ({self._failure!r})")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve where the deployment has a `Scale`."""
        shares = [
            load.share(self._batchers[action].rows_queued) for action, load in self._loads.items()
        ]
        return {LOAD: max(self._loop_share, *shares)}

    async def __del__(self) -> None:
        """Called by Serve before the replica is stopped: take leave, answer what is under way."""
        if not hasattr(self, "_loop"):
            return
        self._stopping = True
        with contextlib.suppress(RayActorError):  # no gateway, nothing to leave
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
        from raysys.serve._routes import HttpApp

        self._loop = asyncio.get_running_loop()
        self._id = ray.get_runtime_context().get_actor_id()
        application = self._application
        self._batchers = {
            action: Batcher(
                self._runners[action],
                graph.inputs,
                application.batching,
                in_flight=graph.plan.in_flight,
                observe=self._metrics[action].batch,
            )
            for action, graph in application.graphs.items()
        }
        answers = {action: await self._warm_up(action) for action in application.graphs}
        app = HttpApp(application, self._batchers, answers)
        limit = application.max_body_bytes
        self._stop = asyncio.Event()
        server = await self._loop.create_server(
            lambda: Connection(app.answer, limit), sock=self._socket
        )
        announcing = asyncio.create_task(self._announce())
        await self._stop.wait()
        announcing.cancel()
        server.close()

    async def _warm_up(self, action: str) -> Answers | None:
        """Run the example, so that the first request finds everything loaded."""
        graph, examples = self._application.graphs[action], self._application.examples
        if action not in examples:
            columns = {name: kind.zeros(1) for name, kind in graph.inputs.items()}
        elif (example := examples[action]) is None:
            return None
        else:
            columns = graph.check_columns(example)
        try:
            return await self._runners[action](columns, ())
        except Exception:
            if action in examples:
                raise
            which = f"the graph of action {action!r}" if action else "the graph"
            _log.warning("%s does not take zeros; give an example to warm up with", which)
            return None

    async def _announce(self) -> None:
        """Tell the gateway again and again, so that a new gateway knows its replicas too."""
        application = self._application
        announcement = Announcement(
            application.name, application.version, self._id,
            self._host, self._socket.getsockname()[1],
        )  # fmt: skip
        is_crowded, worked_s = False, time.thread_time()
        refused = dict.fromkeys(self._batchers, 0)
        while True:
            before, before_s = self._beat, worked_s
            self._beat, worked_s = time.monotonic(), time.thread_time()
            # Of this thread, which reads requests and writes answers.
            self._loop_share = (worked_s - before_s) / max(ANNOUNCE_S, self._beat - before)
            is_crowded = psutil.cpu_percent() > (_CALM_PERCENT if is_crowded else _CROWDED_PERCENT)
            capacity = 0
            for action, batcher in self._batchers.items():
                self._metrics[action].queue(batcher.rows_queued, batcher.refused)
                self._runners[action].is_crowded = batcher.is_crowded = is_crowded
                capacity += batcher.capacity(application.deadline_s)
                if batcher.refused > refused[action]:
                    _log.warning(
                        "%d requests refused: their answers could not be there within "
                        "deadline_s=%g, or max_queue=%d rows wait already",
                        batcher.refused - refused[action], application.deadline_s,
                        application.batching.rows_queued,
                    )  # fmt: skip
                    refused[action] = batcher.refused
            if not self._stopping:
                try:
                    told = self._gateway.announce.remote(announcement, capacity)
                    await asyncio.wrap_future(told.future())
                    self._ready.set()
                except Exception as error:  # a gateway that restarts
                    _log.warning("the gateway does not listen: %r", error)
            await asyncio.sleep(ANNOUNCE_S)
