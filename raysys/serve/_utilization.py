"""The utilization of a replica."""

from __future__ import annotations

import math
import threading
import time

_FORGET = 0.98  # weight of earlier batches after each batch
_QUEUE_S = 1.0  # queued work of this many seconds adds a load of 1


class LoadEstimator:
    """Estimates a replica's load: the work done, as if in full batches, per second.

    A batch's time is modelled as a fixed part and a part per row, by least squares over the latest
    batches. So a graph that spends half of its time on single rows has a load below 0.5 if it could
    process many rows in the same time.
    """

    def __init__(self, max_batch_size: int, in_flight: int = 1) -> None:
        """Start idle.

        Args:
            max_batch_size: Maximum number of rows in a batch.
            in_flight: Maximum number of concurrent batches.
        """
        self._max_batch_size, self._in_flight = max_batch_size, in_flight
        self._lock = threading.Lock()
        self._weight = self._rows = self._seconds = self._squares = self._products = 0.0
        self._done, self._since = 0, time.monotonic()

    def batch(self, rows: int, seconds: float) -> None:
        """Record a batch."""
        with self._lock:
            self._done += rows
            self._weight = _FORGET * self._weight + 1
            self._rows = _FORGET * self._rows + rows
            self._seconds = _FORGET * self._seconds + seconds
            self._squares = _FORGET * self._squares + rows * rows
            self._products = _FORGET * self._products + rows * seconds

    def row_s(self) -> float:
        """Seconds per row of a full batch; 0 before the first batch."""
        if not self._weight:
            return 0.0
        rows, seconds = self._rows / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - rows * rows
        if variance > 1e-3 * rows * rows:
            covariance = self._products / self._weight - rows * seconds
            slope = min(max(0.0, covariance / variance), seconds / rows)
        else:  # batches of equal size cannot separate the two parts: assume the larger cost
            slope = seconds / rows
        return slope + (seconds - slope * rows) / self._max_batch_size

    def load(self, queued: int = 0) -> float:
        """The load since the last call: 1 is full utilization, more means a queue.

        Args:
            queued: Number of queued rows.
        """
        with self._lock:
            now = time.monotonic()
            row_s, done, past_s = self.row_s(), self._done, now - self._since
            self._done, self._since = 0, now
        if math.isclose(past_s, 0.0):
            return 0.0
        excess = max(0, queued - self._max_batch_size)
        return (done * row_s / past_s + excess * row_s / _QUEUE_S) / self._in_flight
