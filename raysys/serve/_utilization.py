"""How much of what a replica can do it does."""

from __future__ import annotations

import math
import threading
import time

_FORGET = 0.98  # of what was learned, by each batch
_QUEUE_S = 1.0  # rows whose work takes as long as this wait: a load of 1 on top


class Load:
    """Learns what batches cost, and reckons the work that was done in full batches.

    A batch takes a time for itself and one for each row, by least squares over the latest
    batches. So a graph that answers one row at a time in half of its time is not half busy, if
    it could answer many in that time.
    """

    def __init__(self, most_rows: int, in_flight: int = 1) -> None:
        """Start idle.

        Args:
            most_rows: Of a batch.
            in_flight: Batches that run at once at most.
        """
        self._most_rows, self._in_flight = most_rows, in_flight
        self._lock = threading.Lock()
        self._weight = self._rows = self._seconds = self._squares = self._products = 0.0
        self._done, self._since = 0, time.monotonic()

    def batch(self, rows: int, seconds: float) -> None:
        """Note a batch."""
        with self._lock:
            self._done += rows
            self._weight = _FORGET * self._weight + 1
            self._rows = _FORGET * self._rows + rows
            self._seconds = _FORGET * self._seconds + seconds
            self._squares = _FORGET * self._squares + rows * rows
            self._products = _FORGET * self._products + rows * seconds

    def row_s(self) -> float:
        """Seconds of a row in a full batch; 0 before the first batch."""
        if not self._weight:
            return 0.0
        rows, seconds = self._rows / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - rows * rows
        if variance > 1e-3 * rows * rows:
            covariance = self._products / self._weight - rows * seconds
            slope = min(max(0.0, covariance / variance), seconds / rows)
        else:  # batches of one size do not tell their two times apart: the dearer way
            slope = seconds / rows
        return slope + (seconds - slope * rows) / self._most_rows

    def share(self, waiting: int = 0) -> float:
        """The load since the last call: 1 is all that can be done, more is a queue.

        Args:
            waiting: Rows of the queue.
        """
        with self._lock:
            now = time.monotonic()
            row_s, done, past_s = self.row_s(), self._done, now - self._since
            self._done, self._since = 0, now
        if math.isclose(past_s, 0.0):
            return 0.0
        beyond = max(0, waiting - self._most_rows)
        return (done * row_s / past_s + beyond * row_s / _QUEUE_S) / self._in_flight
