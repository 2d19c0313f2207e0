"""The processes that run a replica's own nodes: one in use, one that stands by.

A batch that ends its process, or hangs in it, costs the other requests nothing: they go on in the
process that stands by, while another one starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysys.cluster import WORKER_NAME, AsyncChannel, check_user, task_error_cause
from raysys.serve._batching import WorkerEndedError
from raysys.serve._compiler import ENTRY
from raysys.serve._graph_worker import GraphWorker

if TYPE_CHECKING:
    from raysys.serve._application import Application
    from raysys.serve._column_types import Columns
    from raysys.serve._request_context import RequestContext

# A worker whose batch takes this many times as long as usual gets no others, if another is free.
_PATIENCE, _MIN_PATIENCE_S = 20.0, 0.03
_SMOOTHING = 8  # batches
_STAND_BY_BYTES = 512 << 20
_POLL_S, _SUPERVISE_S, _WORDS_S = 0.005, 0.1, 1.0
_MAX_FAILURES = 3
_log = logging.getLogger("raysys.serve")


class _NodeTraceback(Exception):  # noqa: N818 - the cause of an error, for logs
    """Traceback of an error in a worker."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(eq=False)
class _Call:
    """A call that a worker has not answered; times in seconds."""

    start: float
    patience: float
    requests: int
    is_hung: bool = False


@dataclass(eq=False)
class _Worker:
    """A worker, its idle connections, and its calls."""

    actor: Any
    pid: int
    address: str
    channels: list[AsyncChannel] = field(default_factory=list)
    calls: set[_Call] = field(default_factory=set)

    def is_overdue(self, now: float) -> bool:
        """Whether a call takes much longer than usual."""
        return any(now > call.start + call.patience for call in self.calls)

    def holds_up_others(self, now: float) -> bool:
        """Whether an overdue call may keep other requests of this worker from their answers."""
        return self.is_overdue(now) and sum(call.requests for call in self.calls) > 1


class GraphWorkers:
    """Runs batches of the entry's nodes in other processes; belongs to one event loop.

    Attributes:
        failure: Why no process can be started; the replica should then be replaced.
    """

    def __init__(self, application: Application, nodes: bytes) -> None:
        """Start the first process, which loads nothing yet; arguments as of `EntryReplica`."""
        self._nodes, self._deadline_s = nodes, application.deadline_s
        self._name = f"{WORKER_NAME}::{application.name}-v{application.version}#{ENTRY}"
        self._options = {
            "num_cpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            ),
        }
        self._first: Any = self._start_process()
        self._workers: list[_Worker] = []
        self._wanted, self._starting, self._failures = 2, 0, 0
        self._waiting = 0
        self._usual_s: dict[tuple[str, int], float] = {}
        self._examples: dict[tuple[str, int], bytes] = {}
        self._words = _LastWords()
        self.failure: BaseException | None = None

    async def start(self) -> None:
        """Start the first worker.

        Raises:
            Exception: The nodes cannot be loaded.
        """
        await self._words.listen()
        await self._begin()
        self._supervising = asyncio.create_task(self._supervise())

    async def run(
        self, action: str, number: int, values: Columns, rows: int,
        contexts: tuple[RequestContext, ...], alone: bool,
    ) -> tuple[Columns, float]:  # fmt: skip
        """The values of a step over a batch, and its seconds in the worker.

        `alone` runs it in a process that runs nothing else, and that no other request needs.

        Raises:
            WorkerEndedError: The process has ended.
            Exception: A node failed.
        """
        step = action, number
        request = pickle.dumps(("run", action, number, values, rows, contexts), 5)
        if not contexts:  # the example, which a new worker runs before it is used
            self._examples.setdefault(step, request)
        self._waiting += not alone
        try:
            while (worker := self._choose(alone)) is None:
                await asyncio.sleep(_POLL_S)
        finally:
            self._waiting -= not alone
        call = _Call(time.monotonic(), self.patience_s(action), len(contexts))
        outputs, seconds = _result(await self._ask(worker, call, request))
        usual = self._usual_s.get(step, seconds)
        self._usual_s[step] = usual + (seconds - usual) / _SMOOTHING
        return outputs, seconds

    async def read(self, action: str, method: str, *args: Any) -> Any:
        """A large body, read by a method of `RequestReader` in the process that stands by.

        Raises:
            WorkerEndedError: The process has ended.
            Exception: The method failed.
        """
        request = pickle.dumps(("read", action, method, *args), 5)
        while not self._workers:
            await asyncio.sleep(_POLL_S)
        idle = [worker for worker in self._workers if not worker.calls]
        worker = (idle or self._workers)[-1]
        return _result(await self._ask(worker, self._patient_call(), request))

    def patience_s(self, action: str) -> float:
        """Seconds after which a batch of an action no longer holds up the next one."""
        usual = [seconds for (of, _), seconds in self._usual_s.items() if of == action]
        return max(_MIN_PATIENCE_S, _PATIENCE * sum(usual)) if usual else self._deadline_s

    def has_idle(self) -> bool:
        """Whether a process runs nothing."""
        return any(not worker.calls for worker in self._workers)

    def stop(self) -> None:
        """End the processes."""
        self._supervising.cancel()
        for worker in self._workers:
            _kill(worker.pid)

    def _choose(self, alone: bool) -> _Worker | None:
        """The worker for the next batch; the first one is in use."""
        now = time.monotonic()
        if alone:
            apart = self._workers[self._wanted - 1 :]
            return next((worker for worker in apart if not worker.calls), None)
        for worker in self._workers:
            if not worker.is_overdue(now):
                if worker is not self._workers[0]:
                    self._workers.remove(worker)
                    self._workers.insert(0, worker)
                return worker
        return None

    def _patient_call(self) -> _Call:
        return _Call(time.monotonic(), self._deadline_s, requests=1)

    async def _ask(self, worker: _Worker, call: _Call, request: bytes) -> bytes:
        worker.calls.add(call)
        channel = worker.channels.pop() if worker.channels else None
        try:
            channel = channel or await AsyncChannel.connect(worker.address)
            reply = await channel.ask(request)
        except OSError:
            raise await self._ended(worker, call) from None
        except BaseException:
            if channel:
                channel.close()
            raise
        finally:
            worker.calls.remove(call)
        worker.channels.append(channel)
        return reply

    async def _ended(self, worker: _Worker, call: _Call) -> WorkerEndedError:
        """The error of a call whose worker has ended."""
        if worker in self._workers:
            self._workers.remove(worker)
        _kill(worker.pid)
        words = "a batch hung" if call.is_hung else await self._words.of(worker.pid)
        error = WorkerEndedError(words, is_hung=call.is_hung)
        _log.warning("%s; another one starts", error)
        return error

    def _start_process(self) -> Any:
        name = f"{self._name}#{uuid.uuid4().hex}"
        return ray.remote(GraphWorker).options(name=name, **self._options).remote(self._nodes)

    async def _begin(self) -> None:
        """Load the nodes in a process, run the examples, and use it."""
        actor, self._first = self._first or self._start_process(), None
        loading = actor.load.remote(self._words.address)
        try:
            pid, address, node_bytes = await asyncio.wrap_future(loading.future())
        except RayError as error:
            raise task_error_cause(error) from None
        worker = _Worker(actor, pid, address)
        for request in self._examples.values():
            await self._ask(worker, self._patient_call(), request)
        if node_bytes > _STAND_BY_BYTES:
            self._wanted = 1
        self._workers.append(worker)

    async def _supervise(self) -> None:
        """End the workers that hang, and start others."""
        while True:
            now = time.monotonic()
            for worker in self._workers:
                limit_s = self._deadline_s
                # Those that it holds up are tried elsewhere, and need time for that.
                if self._waiting:
                    limit_s /= 2
                if worker.holds_up_others(now):
                    limit_s = self._deadline_s / 4
                for call in worker.calls:
                    call.is_hung = now > call.start + limit_s
                if any(call.is_hung for call in worker.calls):
                    _kill(worker.pid)
            if len(self._workers) + self._starting < self._wanted:
                self._starting += 1
                asyncio.create_task(self._replace())  # noqa: RUF006 - counted
            await asyncio.sleep(_SUPERVISE_S)

    async def _replace(self) -> None:
        try:
            await self._begin()
            self._failures = 0
        except Exception as error:
            _log.exception("a process of the nodes cannot start")
            self._failures += 1
            if self._failures >= _MAX_FAILURES and not self._workers:
                self.failure = error
            await asyncio.sleep(1.0)
        finally:
            self._starting -= 1


class _LastWords:
    """What workers say before they end: `_report_end`."""

    def __init__(self) -> None:
        self.address = f"\0raysys-{uuid.uuid4().hex}"
        self._said: dict[int, asyncio.Future[str]] = {}

    async def listen(self) -> None:
        """Receive them."""
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(self.address)
        self._server = await asyncio.start_unix_server(self._receive, sock=listening)

    async def of(self, pid: int) -> str:
        """The words of a process that has ended; empty if it was killed."""
        if reason := self._said.get(pid):
            await asyncio.wait([reason], timeout=_WORDS_S)
        return reason.result() if reason and reason.done() else ""

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            check_user(writer.get_extra_info("socket"))
        except PermissionError:
            writer.close()
            return
        pid = int(await reader.readline())
        self._said[pid] = asyncio.get_running_loop().create_future()
        words = (await reader.read()).decode(errors="replace").strip()
        self._said[pid].set_result(words)


def _result(reply: bytes) -> Any:
    """What a worker gave, or its error."""
    result, traceback = pickle.loads(reply)
    if isinstance(result, Exception):
        raise result from _NodeTraceback(traceback)
    return result


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
