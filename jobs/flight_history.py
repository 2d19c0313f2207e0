"""Event history: sums over a key's events in time windows, and a key's latest event.

A window excludes its end, so that features of a moment contain only events known before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NEVER = 1 << 31  # minutes; after all queried times
_SHIFT = 32


class Codes:
    """Codes from 0 for the distinct rows of some columns; -1 for unseen rows."""

    def __init__(self, *columns: np.ndarray) -> None:
        """Assign codes to the rows of columns `(n,)` of texts or integers."""
        self._values = [np.unique(column) for column in columns]
        # One integer per row; four columns of flights fit into 64 bits.
        self._rows = np.unique(self._joined(columns))

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, *columns: np.ndarray) -> np.ndarray:
        """Codes of rows, int64 `(n,)`."""
        return _positions(self._rows, self._joined(columns))

    def _joined(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        joined = np.zeros(len(columns[0]), np.int64)
        is_known = np.ones(len(columns[0]), bool)
        for values, column in zip(self._values, columns, strict=True):
            position = _positions(values, column)
            joined = joined * len(values) + position
            is_known &= position >= 0
        return np.where(is_known, joined, -1)


@dataclass(frozen=True)
class Sums:
    """Running sums of events by key and time.

    Sums are exact, so that events outside a window do not affect it: values are whole numbers, or
    multiples of 2^-20, and stay below 2^53.
    """

    at: np.ndarray  # int64, key and time combined, ascending
    running: Mapping[str, np.ndarray]  # float64, one longer than `at`

    @classmethod
    def of(cls, keys: np.ndarray, times: np.ndarray, **values: np.ndarray | float) -> Sums:
        """Sort events.

        Args:
            keys: int64 `(n,)`; events with a negative key are omitted.
            times: int64 `(n,)`, from 0; events at `NEVER` are omitted.
            values: float64 `(n,)`, or a number for all events.
        """
        valid = (keys >= 0) & (times < NEVER)
        at = _at(keys[valid], times[valid])
        order = np.argsort(at, kind="stable")
        running = {}
        for name, value in values.items():
            summands = np.broadcast_to(value, keys.shape)[valid][order]
            running[name] = np.concatenate([[0.0], np.cumsum(summands, dtype=np.float64)])
        return cls(at[order], running)

    def within(
        self, keys: np.ndarray, since: np.ndarray | int, until: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Sums over the events with since <= time < until, float64 `(n,)` by name."""
        first = np.searchsorted(self.at, _at(keys, since))
        last = np.searchsorted(self.at, _at(keys, until))
        return {name: sums[last] - sums[first] for name, sums in self.running.items()}


@dataclass(frozen=True)
class Latest:
    """Events by key and time, for lookups of the latest event."""

    at: np.ndarray
    values: Mapping[str, np.ndarray]  # float64, with NaN appended

    @classmethod
    def of(cls, keys: np.ndarray, times: np.ndarray, **values: np.ndarray) -> Latest:
        """Sort events; arguments as for `Sums.of`."""
        valid = (keys >= 0) & (times < NEVER)
        at = _at(keys[valid], times[valid])
        order = np.argsort(at, kind="stable")
        columns = {"time": times, **values}
        return cls(at[order], {n: np.append(v[valid][order], np.nan) for n, v in columns.items()})

    def within(
        self, keys: np.ndarray, since: np.ndarray, until: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Values of each key's latest event with since <= time < until, NaN if there is none."""
        position = np.searchsorted(self.at, _at(keys, until)) - 1
        is_missing = (keys < 0) | (position < np.searchsorted(self.at, _at(keys, since)))
        position = np.where(is_missing, -1, position)
        return {name: values[position] for name, values in self.values.items()}


def _at(keys: np.ndarray, times: np.ndarray | int) -> np.ndarray:
    return (keys << _SHIFT) + np.clip(times, 0, NEVER)


def _positions(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Positions of values in an ascending array, -1 for missing values."""
    if not len(ascending):
        return np.full(len(values), -1)
    position = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return np.where(ascending[position] == values, position, -1)
