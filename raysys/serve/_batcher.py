"""Batching at the entry: whatever waits when the graph is free is the next batch."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.errors import RaysysError
from raysys.serve._outputs import Answers, join, slice_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from raysys.serve._column_types import Array, Columns

_SWEEP_S = 0.05
_GATHER_S = 0.001
_QUEUED_BATCHES = 16
# Of a prediction that deadlines are held against: a flood of requests takes processor time from
# the batches, which are then several times slower than they were when requests were let in.
_MARGIN = 3.0
_SMOOTHING = 0.2


class OverloadedError(RaysysError):
    """The queue is full, or too long for the request's deadline."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("more requests wait than can be answered in time: try again later")
        self.retry_after_s = retry_after_s


class DeadlineError(RaysysError):
    """The request's deadline passed before its answer was there."""


@dataclass(frozen=True)
class Batching:
    """How requests are brought together.

    A batch is what has queued up while the graph was busy; no request waits for others to come,
    unless no core of the machine is idle: then a batch gathers for a millisecond.

    Attributes:
        max_batch_size: Rows in a batch at most.
        max_queue: Rows that wait at most, in each replica; 16 full batches by default.
        cost: What a row costs, for example its tokens; it is given the row's values by name.
        max_cost: Sum of a batch's costs at most; a row that costs more goes alone.
        target_ms: A batch's time: the size follows it by additive increase and multiplicative
            decrease (Crankshaw et al., Clipper, NSDI 2017, section 4.3.1).
    """

    max_batch_size: int = 64
    max_queue: int | None = None
    cost: Callable[[Mapping[str, Any]], float] | None = None
    max_cost: float = math.inf
    target_ms: float | None = None

    @property
    def rows_queued(self) -> int:
        """Rows that wait at most."""
        return self.max_queue or _QUEUED_BATCHES * self.max_batch_size


@dataclass(frozen=True)
class RequestContext:
    """Whose row it is.

    Attributes:
        request_id: Of the header `x-request-id`.
        traceparent: W3C trace context.
    """

    request_id: str
    traceparent: str


_current: contextvars.ContextVar[tuple[RequestContext, ...]] = contextvars.ContextVar(
    "raysys_requests", default=()
)


def current_requests() -> tuple[RequestContext, ...]:
    """The requests of the batch that is running, for a node's logs and spans; a bulk request once.

    Empty outside of an HTTP application.
    """
    return _current.get()


@contextlib.contextmanager
def requests_running(contexts: tuple[RequestContext, ...]) -> Any:
    """Say whose batch runs in this thread."""
    token = _current.set(contexts)
    try:
        yield
    finally:
        _current.reset(token)


class _Item:
    """Rows of one request that run in one batch."""

    __slots__ = (
        "arrived", "columns", "context", "cost", "deadline", "future", "row", "rows", "shape",
    )  # fmt: skip

    def __init__(
        self, row: Sequence[Any] | None, columns: Columns | None, rows: int, cost: float,
        shape: Any, deadline: float, context: RequestContext, future: asyncio.Future[Answers],
    ) -> None:  # fmt: skip
        self.row, self.columns, self.rows, self.cost = row, columns, rows, cost
        self.shape, self.deadline, self.context, self.future = shape, deadline, context, future
        self.arrived = time.monotonic()


class Batcher:
    """Queues rows and runs them in batches; belongs to one event loop.

    Attributes:
        is_crowded: Whether no core of the machine is idle; told from outside. Then a batch
            gathers for a millisecond: what that costs a request, larger batches save it.
        refused: Requests so far that could not have been answered in time.
    """

    def __init__(
        self,
        run: Callable[[Columns, tuple[RequestContext, ...]], Awaitable[Answers]],
        inputs: Mapping[str, Array],
        batching: Batching,
        *,
        in_flight: int = 1,
        observe: Callable[[int, float, float], None] | None = None,
    ) -> None:
        """Start with an empty queue.

        Args:
            run: Answers a batch.
            inputs: Types of its columns.
            batching: Bounds.
            in_flight: Batches under way at once.
            observe: Told each batch's rows and seconds, and how long its oldest request waited.
        """
        self._run, self._inputs, self._batching = run, inputs, batching
        self._in_flight, self._observe = in_flight, observe
        # Rows of unequal length make no array, so they cannot share a batch.
        self._ragged = any(None in kind.shape for kind in inputs.values())
        self._limit = float(batching.max_batch_size)
        self._queue: collections.deque[_Item] = collections.deque()
        self._rows_queued = 0
        self._running: set[asyncio.Task[None]] = set()
        self._items_running: set[_Item] = set()
        self.is_crowded = False
        self._starting = False
        self._batch_s = 0.0
        self._started = 0.0
        self.refused = 0
        self._sweeping = False

    @property
    def rows_queued(self) -> int:
        """Rows that wait."""
        return self._rows_queued

    def capacity(self, deadline_s: float) -> int:
        """Rows that may be here at once, so that the last is answered in time."""
        most = self._batching.rows_queued + self._in_flight * self._batching.max_batch_size
        if not self._batch_s:
            return most
        batches = self._in_flight * deadline_s / _MARGIN / self._batch_s
        return int(min(most, self._limit * max(2.0 * self._in_flight, batches)))

    @property
    def is_idle(self) -> bool:
        """Nothing waits or runs."""
        return not self._queue and not self._running

    def submit_row(
        self, row: Sequence[Any], deadline: float, context: RequestContext
    ) -> asyncio.Future[Answers]:
        """Queue one row.

        Args:
            row: Values of the inputs, in their order.
            deadline: On the clock of `time.monotonic`.
            context: Whose it is.

        Returns:
            A future of answers to one row.

        Raises:
            OverloadedError: The answer could not be there in time.
        """
        self._admit(1, deadline)
        shape = tuple(np.shape(value) for value in row) if self._ragged else None
        cost = 1.0
        if self._batching.cost:
            cost = self._cost(dict(zip(self._inputs, row, strict=True)))
        return self._put(row, None, 1, cost, shape, deadline, context)

    async def submit_columns(
        self, columns: Columns, rows: int, deadline: float, context: RequestContext
    ) -> Answers:
        """Answer many rows, cut into batches if they are too many for one."""
        self._admit(min(rows, self._batching.max_batch_size), deadline)
        shape = tuple(column.shape[1:] for column in columns.values()) if self._ragged else None
        waiting: collections.deque[asyncio.Future[Answers]] = collections.deque()
        answers = []
        try:
            for start, stop, cost in self._cuts(columns, rows):
                # A few at a time, so that the rows of others come in between.
                if len(waiting) > self._in_flight:
                    answers.append(await waiting.popleft())
                piece = {name: column[start:stop] for name, column in columns.items()}
                waiting.append(self._put(None, piece, stop - start, cost, shape, deadline, context))
            while waiting:
                answers.append(await waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()
        return join(answers)

    def _cuts(self, columns: Columns, rows: int) -> Iterator[tuple[int, int, float]]:
        """(start, stop, cost) of pieces that fit a batch."""
        size, start = self._batching.max_batch_size, 0
        while start < rows:
            stop, cost = min(rows, start + size), float(min(size, rows - start))
            if self._batching.cost:
                stop, cost = start, 0.0
                while stop < min(rows, start + size):
                    one = self._cost({name: column[stop] for name, column in columns.items()})
                    if stop > start and cost + one > self._batching.max_cost:
                        break
                    stop, cost = stop + 1, cost + one
            yield start, stop, cost
            start = stop

    async def drain(self) -> None:
        """Wait until nothing waits or runs."""
        while not self.is_idle:
            await asyncio.sleep(0.01)

    def _cost(self, row: Mapping[str, Any]) -> float:
        return self._batching.cost(row) if self._batching.cost else 1.0

    def _admit(self, rows: int, deadline: float) -> None:
        """Refuse now what would be late later."""
        if not self._queue and len(self._running) < self._in_flight:
            return
        now = time.monotonic()
        batches = math.ceil((self._rows_queued + rows) / max(1.0, self._limit))
        running_s = max(0.0, self._started + self._batch_s - now)
        wait_s = running_s + batches / self._in_flight * self._batch_s
        full = self._rows_queued + rows > self._batching.rows_queued and self._queue
        if full or now + _MARGIN * wait_s > deadline:
            self.refused += 1
            raise OverloadedError(wait_s)

    def _put(
        self, row: Sequence[Any] | None, columns: Columns | None, rows: int, cost: float,
        shape: Any, deadline: float, context: RequestContext,
    ) -> asyncio.Future[Answers]:  # fmt: skip
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answers] = loop.create_future()
        self._queue.append(_Item(row, columns, rows, cost, shape, deadline, context, future))
        self._rows_queued += rows
        self._start_soon(loop)
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(_SWEEP_S, self._sweep)
        return future

    def _start_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """After the requests that this turn of the event loop has read."""
        if not self._starting and len(self._running) < self._in_flight:
            self._starting = True
            if self.is_crowded and self._rows_queued < self._limit / 2:
                loop.call_later(_GATHER_S, self._start)
            else:
                loop.call_soon(self._start)

    def _start(self) -> None:
        self._starting = False
        while self._queue and len(self._running) < self._in_flight:
            items = self._take()
            if items:
                task = asyncio.get_running_loop().create_task(self._work(items))
                self._running.add(task)

    def _take(self) -> list[_Item]:
        """The next batch: the oldest item and those after it that fit beside it."""
        items: list[_Item] = []
        rows, cost, now = 0, 0.0, time.monotonic()
        while self._queue:
            item = self._queue[0]
            if item.future.done():  # late, or its client has gone
                self._drop()
                continue
            if now > item.deadline:
                self._drop()
                item.future.set_exception(_late())
                continue
            if items and (
                rows + item.rows > self._limit
                or cost + item.cost > self._batching.max_cost
                or item.shape != items[0].shape
            ):
                break
            self._drop()
            items.append(item)
            rows, cost = rows + item.rows, cost + item.cost
        return items

    def _drop(self) -> None:
        self._rows_queued -= self._queue.popleft().rows

    async def _work(self, items: list[_Item]) -> None:
        task = asyncio.current_task()
        assert task
        self._started = time.monotonic()
        self._items_running.update(items)
        try:
            await self._answer(items, task)
        finally:
            self._release(task)
            self._items_running.difference_update(items)

    async def _answer(self, items: list[_Item], task: asyncio.Task[None] | None = None) -> None:
        """Run a batch; if it fails, find who is to blame by halving it."""
        started = time.monotonic()
        try:
            contexts = tuple(item.context for item in items)
            answers = await self._run(self._columns(items), contexts)
        except Exception as error:
            if len(items) == 1:
                if not items[0].future.done():
                    items[0].future.set_exception(error)
                return
            await self._answer(items[: len(items) // 2])
            await self._answer(items[len(items) // 2 :])
            return
        rows, seconds = sum(item.rows for item in items), time.monotonic() - started
        self._adapt(rows, seconds)
        if task:
            self._release(task)  # the next batch starts before this one's answers are sent
        start = 0
        for item in items:
            if not item.future.done():
                item.future.set_result(slice_of(answers, start, start + item.rows))
            start += item.rows
        if self._observe:
            self._observe(rows, seconds, started - items[0].arrived)

    def _release(self, task: asyncio.Task[None]) -> None:
        if task in self._running:
            self._running.discard(task)
            if self.is_crowded:
                self._start_soon(asyncio.get_running_loop())
            else:
                self._start()

    def _columns(self, items: list[_Item]) -> Columns:
        if all(item.columns is None for item in items):
            return self._stack([item.row for item in items if item.row is not None])
        parts = [
            item.columns if item.columns is not None else self._stack([item.row or ()])
            for item in items
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._inputs}

    def _stack(self, rows: Sequence[Sequence[Any]]) -> Columns:
        return {
            name: np.array([row[number] for row in rows], kind.numpy)
            for number, (name, kind) in enumerate(self._inputs.items())
        }

    def _adapt(self, rows: int, seconds: float) -> None:
        """Learn a batch's time; move the size towards the target."""
        self._batch_s += (seconds - self._batch_s) * (_SMOOTHING if self._batch_s else 1.0)
        target_ms = self._batching.target_ms
        if target_ms is None:
            return
        if 1000 * seconds > target_ms:
            self._limit = max(1.0, 0.9 * self._limit)
        elif rows >= math.floor(self._limit):
            self._limit = min(self._batching.max_batch_size, self._limit + 1)

    def _sweep(self) -> None:
        """Tell those whose deadline has passed, wherever their rows are."""
        now = time.monotonic()
        for item in [*self._queue, *self._items_running]:
            if now > item.deadline and not item.future.done():
                item.future.set_exception(_late())
        self._sweeping = bool(self._queue or self._items_running)
        if self._sweeping:
            asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)


def _late() -> DeadlineError:
    return DeadlineError("the deadline passed before the answer was there")
