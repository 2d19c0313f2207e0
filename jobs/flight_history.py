"""What had become known by a moment: sums over a key's events in any window of time.

Nothing else is needed to make features of what happened before. A window ends before the moment
that is asked about, so an event that is not known by then cannot be in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NEVER = 1 << 31  # minutes; after every moment that is asked about
_SHIFT = 32


class Codes:
    """Numbers from 0 for the distinct rows of some columns; -1 for what was not among them."""

    def __init__(self, *columns: np.ndarray) -> None:
        """Number the rows of columns `(n,)`, which hold texts or integers."""
        self._values = [np.unique(column) for column in columns]
        # One integer a row, small enough for any four columns of ours.
        self._rows = np.unique(self._joined(columns))

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, *columns: np.ndarray) -> np.ndarray:
        """int64 `(n,)`."""
        return _places(self._rows, self._joined(columns))

    def _joined(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        joined = np.zeros(len(columns[0]), np.int64)
        known = np.ones(len(columns[0]), bool)
        for values, column in zip(self._values, columns, strict=True):
            place = _places(values, column)
            joined = joined * len(values) + place
            known &= place >= 0
        return np.where(known, joined, -1)


@dataclass(frozen=True)
class Sums:
    """Events by key and time, and the running sums of their values.

    Sums are exact, so that what stands before or after a window does not show in it: values are
    whole numbers, or multiples of 2^-20, and stay below 2^53.
    """

    at: np.ndarray  # int64, key and time in one, ascending
    running: Mapping[str, np.ndarray]  # float64, one longer

    @classmethod
    def of(cls, keys: np.ndarray, times: np.ndarray, **values: np.ndarray | float) -> Sums:
        """Sort events.

        Args:
            keys: int64 `(n,)`; events with a negative key are left out.
            times: int64 `(n,)`, from 0; those at `NEVER` are left out.
            values: float64 `(n,)`, or one number for all events.
        """
        kept = (keys >= 0) & (times < NEVER)
        at = _at(keys[kept], times[kept])
        order = np.argsort(at, kind="stable")
        running = {}
        for name, value in values.items():
            of_each = np.broadcast_to(value, keys.shape)[kept][order]
            running[name] = np.concatenate([[0.0], np.cumsum(of_each, dtype=np.float64)])
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
    """Events by key and time, of which the latest before a moment is asked for."""

    at: np.ndarray
    values: Mapping[str, np.ndarray]  # float64, the last one NaN

    @classmethod
    def of(cls, keys: np.ndarray, times: np.ndarray, **values: np.ndarray) -> Latest:
        """Sort events; arguments as for `Sums.of`."""
        kept = (keys >= 0) & (times < NEVER)
        at = _at(keys[kept], times[kept])
        order = np.argsort(at, kind="stable")
        held = {"time": times, **values}
        return cls(at[order], {n: np.append(v[kept][order], np.nan) for n, v in held.items()})

    def within(
        self, keys: np.ndarray, since: np.ndarray, until: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Values of each key's latest event with since <= time < until, NaN if there is none."""
        place = np.searchsorted(self.at, _at(keys, until)) - 1
        none = (keys < 0) | (place < np.searchsorted(self.at, _at(keys, since)))
        place = np.where(none, -1, place)
        return {name: values[place] for name, values in self.values.items()}


def _at(keys: np.ndarray, times: np.ndarray | int) -> np.ndarray:
    return (keys << _SHIFT) + np.clip(times, 0, NEVER)


def _places(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where values stand in an ascending array, -1 where they do not."""
    if not len(ascending):
        return np.full(len(values), -1)
    place = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return np.where(ascending[place] == values, place, -1)
