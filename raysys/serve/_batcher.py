"""Adaptive batching at the entry: all rows that wait when the graph is free are the next batch."""

from __future__ import annotations

import asyncio
import collections
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.serve._batching import (
    Batching,
    DeadlineError,
    OverloadedError,
    TooManyRowsError,
    WorkerEndedError,
)
from raysys.serve._outputs import Outputs, concat_outputs, slice_outputs

if TYPE_CHECKING:
    from raysys.serve._column_types import Array, Columns
    from raysys.serve._request_context import RequestContext

_SWEEP_S = 0.05
_GATHER_S = 0.001
# Deadlines are compared with the predicted latency times this: a flood of requests takes processor
# time from the batches, which then run several times slower than when the requests were admitted.
_SAFETY_FACTOR = 3.0
_SMOOTHING = 0.2
# What the caller of a graph that writes must know.
_NOT_BEGUN = ": it had not begun, nothing was changed"
_BEGUN = (
    ": it has begun, and may still be applied as a whole. Send it again, or read what it writes"
)


@dataclass(slots=True, eq=False)
class _QueuedRows:
    """Rows of one request that run in one batch: the values of a single one, or columns."""

    row: Sequence[Any] | None
    columns: Columns | None
    rows: int
    cost: float
    shape: Any
    deadline: float
    context: RequestContext
    arrived: float
    future: asyncio.Future[Outputs]


class Batcher:
    """Queues rows and runs them in batches; belongs to one event loop.

    Attributes:
        is_crowded: Whether all cores of the machine are busy, set by the owner. Then a batch
            gathers for a millisecond: larger batches save more than a request waits.
        rows_queued: Number of rows in the queue.
        refused: Number of requests refused so far, because of the queue or their deadline.
    """

    def __init__(
        self, run: Callable[..., Awaitable[Outputs]],
        inputs: Mapping[str, Array], batching: Batching, *, in_flight: int = 1,
        observe: Callable[[int, float, Sequence[float]], None] | None = None, writes: bool = False,
        patience_s: Callable[[], float] = lambda: math.inf,
        can_overtake: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """Start with an empty queue.

        Args:
            run: Computes the outputs of a batch; with `alone=True` those of a request that may
                have ended its process, apart from others.
            inputs: Column types of a batch.
            batching: Limits of a batch and of the queue.
            in_flight: Maximum number of concurrent batches.
            observe: Called after a batch with its rows, its seconds and its requests' waits, the
                oldest first.
            writes: Whether `run` changes something: then a request is never split, and a late one
                is told whether it may have been applied.
            patience_s: Seconds after which the next batch may overtake one in flight.
            can_overtake: Whether it could run now.
        """
        self._patience_s, self._can_overtake = patience_s, can_overtake
        self._run, self._inputs, self._batching, self._writes = run, inputs, batching, writes
        self._in_flight, self._observe = in_flight, observe
        # Rows of unequal length cannot be stacked, so they cannot share a batch.
        self._ragged = any(None in kind.shape for kind in inputs.values())
        self._limit = float(batching.max_batch_size)
        self._queue: collections.deque[_QueuedRows] = collections.deque()
        self.rows_queued = 0
        self._running: set[asyncio.Task[None]] = set()
        self._items_running: set[_QueuedRows] = set()
        self.is_crowded = False
        self._starting = False
        self._batch_s = 0.0
        self._started = 0.0
        self.refused = 0
        self._sweeping = False

    def capacity(self, deadline_s: float) -> int:
        """Maximum number of pending rows of which the last still meets the deadline."""
        limit = self._batching.queue_limit + self._in_flight * self._batching.max_batch_size
        if not self._batch_s:
            return limit
        batches = self._in_flight * deadline_s / _SAFETY_FACTOR / self._batch_s
        return int(min(limit, self._limit * max(2.0 * self._in_flight, batches)))

    @property
    def is_idle(self) -> bool:
        """Whether no rows wait or run."""
        return not self._queue and not self._items_running

    def submit_row(
        self, row: Sequence[Any], deadline: float, context: RequestContext
    ) -> asyncio.Future[Outputs]:
        """Queue one row, its values in the order of the inputs; returns a future of its outputs.

        The deadline is on the clock of `time.monotonic`.

        Raises:
            OverloadedError: The deadline cannot be met.
        """
        self._admit(1, deadline)
        shape = tuple(np.shape(value) for value in row) if self._ragged else None
        cost_fn = self._batching.cost_fn
        cost = cost_fn(dict(zip(self._inputs, row, strict=True))) if cost_fn else 1.0
        return self._put(row, None, 1, cost, shape, deadline, context)

    async def submit_columns(
        self, columns: Columns, rows: int, deadline: float, context: RequestContext
    ) -> Outputs:
        """Outputs of many rows, split into several batches if necessary, unless the graph writes.

        Raises:
            TooManyRowsError: The graph writes, and the rows are too many for one batch.
            OverloadedError: The deadline cannot be met.
        """
        self.check_rows(rows)
        self._admit(min(rows, self._batching.max_batch_size), deadline)
        shape = tuple(column.shape[1:] for column in columns.values()) if self._ragged else None
        waiting: collections.deque[asyncio.Future[Outputs]] = collections.deque()
        outputs = []
        try:
            for start, stop, cost in self._pieces(columns, rows):
                # A few at a time, so that rows of other requests run in between.
                if len(waiting) > self._in_flight:
                    outputs.append(await waiting.popleft())
                piece = {name: column[start:stop] for name, column in columns.items()}
                waiting.append(self._put(None, piece, stop - start, cost, shape, deadline, context))
            while waiting:
                outputs.append(await waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()
        return concat_outputs(outputs)

    def check_rows(self, rows: int) -> None:
        """Refuse a request with more rows than one batch that writes may have."""
        limit = self._batching.max_write_rows
        if self._writes and rows > limit:
            raise TooManyRowsError(
                f"{rows:,} rows in one request, at most {limit:,} are changed as a whole or not at "
                "all: send them in parts (the limit is Batching.max_write_rows)"
            )

    def _pieces(self, columns: Columns, rows: int) -> Iterator[tuple[int, int, float]]:
        """(start, stop, cost) of pieces that fit a batch, or run in one of their own."""
        if self._writes:
            yield 0, rows, float(rows)
            return
        size, start, cost_fn = self._batching.max_batch_size, 0, self._batching.cost_fn
        while start < rows:
            stop, cost = min(rows, start + size), float(min(size, rows - start))
            if cost_fn:
                stop, cost = start, 0.0
                while stop < min(rows, start + size):
                    row_cost = cost_fn({name: column[stop] for name, column in columns.items()})
                    if stop > start and cost + row_cost > self._batching.max_batch_cost:
                        break
                    stop, cost = stop + 1, cost + row_cost
            yield start, stop, cost
            start = stop

    async def drain(self) -> None:
        """Wait until the batcher is idle."""
        while not self.is_idle:
            await asyncio.sleep(0.01)

    def _admit(self, rows: int, deadline: float) -> None:
        """Refuse rows that would miss their deadline."""
        if not self._queue and len(self._running) < self._in_flight:
            return
        now = time.monotonic()
        batches = math.ceil((self.rows_queued + rows) / max(1.0, self._limit))
        running_s = max(0.0, self._started + self._batch_s - now)
        wait_s = running_s + batches / self._in_flight * self._batch_s
        full = self.rows_queued + rows > self._batching.queue_limit and self._queue
        if full or now + _SAFETY_FACTOR * wait_s > deadline:
            self.refused += 1
            raise OverloadedError(wait_s)

    def _put(
        self, row: Sequence[Any] | None, columns: Columns | None, rows: int, cost: float,
        shape: Any, deadline: float, context: RequestContext,
    ) -> asyncio.Future[Outputs]:  # fmt: skip
        loop = asyncio.get_running_loop()
        item = _QueuedRows(
            row, columns, rows, cost, shape, deadline, context, time.monotonic(),
            loop.create_future(),
        )  # fmt: skip
        self._queue.append(item)
        self.rows_queued += self._weight(rows)
        self._start_soon(loop)
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(_SWEEP_S, self._sweep)
        return item.future

    def _start_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start after all requests of this event loop iteration have been read."""
        if not self._starting and len(self._running) < self._in_flight:
            self._starting = True
            if self.is_crowded and self.rows_queued < self._limit / 2:
                loop.call_later(_GATHER_S, self._start)
            else:
                loop.call_soon(self._start)

    def _start(self) -> None:
        self._starting = False
        while self._queue and len(self._running) < self._in_flight:
            if items := self._next_batch():
                self._running.add(asyncio.get_running_loop().create_task(self._work(items)))

    def _next_batch(self) -> list[_QueuedRows]:
        """The oldest item and the following ones that fit into its batch."""
        items: list[_QueuedRows] = []
        rows, cost, now = 0, 0.0, time.monotonic()
        while self._queue:
            item = self._queue[0]
            if item.future.done():  # late, or its client has disconnected
                self._drop()
                continue
            if now > item.deadline:
                self._drop()
                item.future.set_exception(self._late(has_begun=False))
                continue
            if items and (
                rows + item.rows > self._limit
                or cost + item.cost > self._batching.max_batch_cost
                or item.shape != items[0].shape
            ):
                break
            self._drop()
            items.append(item)
            rows, cost = rows + item.rows, cost + item.cost
        return items

    def _drop(self) -> None:
        self.rows_queued -= self._weight(self._queue.popleft().rows)

    def _weight(self, rows: int) -> int:
        """Rows of a request as the queue counts them: at most a batch."""
        return min(rows, self._batching.max_batch_size)

    def _late(self, *, has_begun: bool) -> DeadlineError:
        return DeadlineError((_BEGUN if has_begun else _NOT_BEGUN) if self._writes else "")

    async def _work(self, items: list[_QueuedRows]) -> None:
        task = asyncio.current_task()
        assert task
        self._started = time.monotonic()
        self._items_running.update(items)
        patience_s = self._patience_s()
        if not math.isinf(patience_s):
            asyncio.get_running_loop().call_later(patience_s, self._overtake, task)
        try:
            await self._run_items(items, task)
        finally:
            self._release(task)
            self._items_running.difference_update(items)

    async def _run_items(
        self, items: list[_QueuedRows], task: asyncio.Task[None] | None = None, *,
        alone: bool = False, again: bool = False,
    ) -> None:  # fmt: skip
        """Run a batch; if it fails, isolate the failing request.

        A batch whose process was killed runs again; a request that may have ended its process is
        tried once more, alone.
        """
        started = time.monotonic()
        try:
            contexts = tuple(item.context for item in items)
            outputs = await self._run(self._columns(items), contexts, alone=alone)
        except WorkerEndedError as error:
            if not (error.is_own or again or alone):
                await self._run_items(items, task, again=True)
                return
            if alone or len(items) == 1:
                _fail(items[0], self._late(has_begun=True) if error.is_hung else error)
                return
            if task:
                self._release(task)
            for item in items:
                if not item.future.done():  # its deadline may pass meanwhile
                    await self._run_items([item], alone=True)
            return
        except Exception as error:
            if len(items) == 1:
                _fail(items[0], error)
                return
            await self._run_items(items[: len(items) // 2], alone=alone)
            await self._run_items(items[len(items) // 2 :], alone=alone)
            return
        rows, seconds = sum(item.rows for item in items), time.monotonic() - started
        # One that ran alone may have waited for a process; one that was overtaken held up nobody.
        is_usual = not alone and (task is None or task in self._running)
        if is_usual and rows <= self._batching.max_batch_size:
            self._adapt(rows, seconds)
        if task:
            self._release(task)  # the next batch starts before these responses are sent
        start = 0
        for item in items:
            if not item.future.done():
                item.future.set_result(slice_outputs(outputs, start, start + item.rows))
            start += item.rows
        if self._observe:
            self._observe(rows, seconds, [started - item.arrived for item in items])

    def _overtake(self, task: asyncio.Task[None]) -> None:
        """Let the next batch start although this one runs."""
        if self._can_overtake():
            self._release(task)
        elif task in self._running:
            asyncio.get_running_loop().call_later(_SWEEP_S, self._overtake, task)

    def _release(self, task: asyncio.Task[None]) -> None:
        if task in self._running:
            self._running.discard(task)
            if self.is_crowded:
                self._start_soon(asyncio.get_running_loop())
            else:
                self._start()

    def _columns(self, items: list[_QueuedRows]) -> Columns:
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
        """Update the estimated batch time; move the batch size towards the target latency."""
        self._batch_s += (seconds - self._batch_s) * (_SMOOTHING if self._batch_s else 1.0)
        target_ms = self._batching.target_latency_ms
        if target_ms is None:
            return
        if 1000 * seconds > target_ms:
            self._limit = max(1.0, 0.9 * self._limit)
        elif rows >= math.floor(self._limit):
            self._limit = min(self._batching.max_batch_size, self._limit + 1)

    def _sweep(self) -> None:
        """Fail requests whose deadline has passed, queued or running."""
        now = time.monotonic()
        for item in [*self._queue, *self._items_running]:
            if now > item.deadline and not item.future.done():
                item.future.set_exception(self._late(has_begun=item in self._items_running))
        self._sweeping = bool(self._queue or self._items_running)
        if self._sweeping:
            asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)


def _fail(item: _QueuedRows, error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(error)
