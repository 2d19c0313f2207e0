"""Arithmetic on groups of columns; the same code for one row as for many.

Each group fills rows of a matrix that is seen transposed, `(d, n)`: an output column is a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raysys.features._calendar import FIELDS, split
from raysys.features._raw_inputs import NO_TIME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.features._transform_base import State
    from raysys.features._transforms import Calendar, Cyclic, Numeric


class NumericGroup:
    """All numeric columns at once: imputation, logarithm, scale."""

    def __init__(self, parts: Sequence[tuple[Numeric, int, Sequence[State]]], rows: dict[str, int]):
        every = [
            (not transform.log, rows[name], first + place, transform, state)
            for transform, first, states in parts
            for place, (name, state) in enumerate(zip(transform.columns, states, strict=True))
        ]
        every.sort(key=lambda one: one[0])  # those on a logarithmic scale first, to be a slice
        self.logs = sum(transform.log for *_, transform, _ in every)
        self.rows = np.array([row for _, row, *_ in every])
        self.out = np.array([out for _, _, out, *_ in every])
        flags = [k for k, (*_, transform, _) in enumerate(every) if transform.indicator]
        self.flags = np.array(flags, np.int64)
        self.flags_out = np.array([every[k][2] + len(every[k][3].columns) for k in flags], np.int64)
        self.fill, self.center, self.scale = (
            np.array([[state[key]] for *_, state in every], np.float64)
            for key in ("fill", "center", "scale")
        )

    def many(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """Of numbers float64 `(k, n)`."""
        values = numbers[self.rows]
        there = np.isfinite(values)
        values = np.where(there, values, self.fill)
        if self.logs:
            values[: self.logs] = signed_log(values[: self.logs])
        values -= self.center
        values /= self.scale
        out[self.out] = values
        if len(self.flags):
            out[self.flags_out] = ~there[self.flags]


def signed_log(values: np.ndarray) -> np.ndarray:
    """sign(x) * log(1 + abs(x))."""
    return np.copysign(np.log1p(np.abs(values)), values)


class CyclicGroup:
    """All columns on circles at once."""

    def __init__(self, parts: Sequence[tuple[Cyclic, int]], rows: dict[str, int]):
        every = [
            (rows[name], transform.period, turn, first + place * transform.harmonics + turn - 1,
             len(transform.columns) * transform.harmonics)
            for transform, first in parts
            for place, name in enumerate(transform.columns)
            for turn in range(1, transform.harmonics + 1)
        ]  # fmt: skip
        self.rows = np.array([one[0] for one in every])
        self.period = np.array([[one[1]] for one in every], np.float64)
        self.turns = np.array([[one[2] * 2 * np.pi] for one in every], np.float64)
        self.sines = np.array([one[3] for one in every])
        self.cosines = np.array([one[3] + one[4] for one in every])

    def many(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """Of numbers float64 `(k, n)`."""
        values = numbers[self.rows]
        there = np.isfinite(values)
        values = np.where(there, values, 0.0)
        angles = np.remainder(values, self.period) / self.period * self.turns
        out[self.sines] = np.sin(angles)
        out[self.cosines] = np.where(there, np.cos(angles), 0.0)


class Dates:
    """The calendar fields of columns of times."""

    def __init__(self, rows: Sequence[int], first: int, transform: Calendar):
        self.rows = np.array(rows)
        self.fields = [
            (FIELDS[field], first + place + len(transform.fields) * np.arange(len(rows)))
            for place, field in enumerate(transform.fields)
        ]

    def many(self, times: np.ndarray, out: np.ndarray) -> None:
        """Of times int64 `(k, n)`."""
        taken = times[self.rows]
        there = taken != NO_TIME
        days, rest = split(np.where(there, taken, 0))
        for field, columns in self.fields:
            out[columns] = np.where(there, field(days, rest), -1)
