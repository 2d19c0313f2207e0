"""Arithmetic on groups of columns; the same code for one row as for many.

Each group fills rows of a transposed matrix `(d, n)`: an output column is a row.
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
        columns = [
            (rows[name], first + place, transform, state)
            for transform, first, states in parts
            for place, (name, state) in enumerate(zip(transform.columns, states, strict=True))
        ]
        columns.sort(key=lambda column: not column[2].log)  # logarithmic ones first, as a slice
        self.logs = sum(transform.log for _, _, transform, _ in columns)
        self.rows = np.array([row for row, *_ in columns])
        self.out = np.array([out for _, out, *_ in columns])
        flags = [
            (k, out + len(transform.columns))
            for k, (_, out, transform, _) in enumerate(columns)
            if transform.add_indicator
        ]
        self.flags, self.flags_out = np.array(flags, np.int64).reshape(-1, 2).T
        self.fill, self.center, self.scale = (
            np.array([[state[key]] for *_, state in columns], np.float64)
            for key in ("fill", "center", "scale")
        )

    def fill_rows(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` from numbers, float64 `(k, n)`."""
        values = numbers[self.rows]
        present = np.isfinite(values)
        values = np.where(present, values, self.fill)
        if self.logs:
            values[: self.logs] = signed_log(values[: self.logs])
        values -= self.center
        values /= self.scale
        out[self.out] = values
        if len(self.flags):
            out[self.flags_out] = ~present[self.flags]


def signed_log(values: np.ndarray) -> np.ndarray:
    """sign(x) * log(1 + abs(x))."""
    return np.copysign(np.log1p(np.abs(values)), values)


class CyclicGroup:
    """All columns on circles at once."""

    def __init__(self, parts: Sequence[tuple[Cyclic, int]], rows: dict[str, int]):
        waves = [
            (rows[name], transform.period, turn, first + place * transform.harmonics + turn - 1,
             len(transform.columns) * transform.harmonics)
            for transform, first in parts
            for place, name in enumerate(transform.columns)
            for turn in range(1, transform.harmonics + 1)
        ]  # fmt: skip
        row, period, turn, sine, cosine_offset = (
            np.array(column) for column in zip(*waves, strict=True)
        )
        self.rows, self.sines, self.cosines = row, sine, sine + cosine_offset
        self.period = period.astype(np.float64)[:, None]
        self.turns = (turn * 2 * np.pi)[:, None]

    def fill_rows(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` from numbers, float64 `(k, n)`."""
        values = numbers[self.rows]
        present = np.isfinite(values)
        values = np.where(present, values, 0.0)
        angles = np.remainder(values, self.period) / self.period * self.turns
        out[self.sines] = np.sin(angles)
        out[self.cosines] = np.where(present, np.cos(angles), 0.0)


class CalendarGroup:
    """Calendar fields of columns of times."""

    def __init__(self, rows: Sequence[int], first: int, transform: Calendar):
        self.rows = np.array(rows)
        self.fields = [
            (FIELDS[field], first + place + len(transform.fields) * np.arange(len(rows)))
            for place, field in enumerate(transform.fields)
        ]

    def fill_rows(self, times: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` from times, int64 `(k, n)`."""
        chosen = times[self.rows]
        present = chosen != NO_TIME
        days, time_of_day = split(np.where(present, chosen, 0))
        for field, columns in self.fields:
            out[columns] = np.where(present, field(days, time_of_day), -1)
