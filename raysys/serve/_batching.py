"""Options of batching, and why a request of a batch has no outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raysys.arguments import checked
from raysys.errors import RaysysError

_QUEUED_BATCHES = 16


@checked
@dataclass(frozen=True)
class Batching:
    """Batching options.

    A batch is the rows that queued up while the graph was busy; requests do not wait for a batch
    to fill up, unless all cores of the machine are busy: then a batch gathers for a millisecond.

    Attributes:
        max_batch_size: Maximum number of rows in a batch.
        max_queued_rows: Maximum number of queued rows in each replica; 16 full batches by default.
        cost_fn: Cost of a row, for example its number of tokens, from the row's values by name.
        max_batch_cost: Maximum total cost of a batch; a row that exceeds it runs alone.
        target_latency_ms: Target time of a batch; the batch size follows by additive increase and
            multiplicative decrease (Crankshaw et al., Clipper, NSDI 2017, section 4.3.1).
        max_write_rows: Maximum number of rows of a request to a graph that writes: one batch,
            applied as a whole or not at all.
    """

    max_batch_size: int = 64
    max_queued_rows: int | None = None
    cost_fn: Callable[[Mapping[str, Any]], float] | None = None
    max_batch_cost: float = math.inf
    target_latency_ms: float | None = None
    max_write_rows: int = 10_000

    @property
    def queue_limit(self) -> int:
        """Maximum number of queued rows, with the default applied."""
        return self.max_queued_rows or _QUEUED_BATCHES * self.max_batch_size


class WorkerEndedError(RaysysError):
    """The process that ran a batch has ended.

    Attributes:
        is_own: Whether the batch itself is the reason: a crash, an exit, or that it hung. A process
            that was killed, or ran out of memory, gives no reason.
        is_hung: Whether it was ended because the batch took too long.
    """

    def __init__(self, reason: str, *, is_hung: bool = False) -> None:
        super().__init__(f"the process that ran the nodes has ended: {reason or 'killed'}")
        self.is_own, self.is_hung = bool(reason), is_hung


class OverloadedError(RaysysError):
    """The queue is full, or too long for the request's deadline."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("overloaded: the queue is too long to answer in time; try again later")
        self.retry_after_s = retry_after_s


class DeadlineError(RaysysError):
    """The request's deadline passed before its response was ready."""

    def __init__(self, outcome: str = "") -> None:
        super().__init__(f"deadline exceeded before the response was ready{outcome}")


class TooManyRowsError(RaysysError):
    """A request to a graph that writes has more rows than one batch of it may have."""
