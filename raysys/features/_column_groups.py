"""Arithmetic on groups of columns; the same code for one row as for many.

Each group fills rows of a transposed matrix `(d, n)`: an output column is a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raysys.features._raw_inputs import DAY_US, NO_TIME

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raysys.features._transforms import Calendar, Cyclic, Numeric, State

_HOUR_US, _MINUTE_US = 3_600_000_000, 60_000_000


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


def _since(unit: str, days: np.ndarray) -> np.ndarray:
    """Months ("M") or years ("Y") since 1970 that have passed after so many days."""
    return days.view("datetime64[D]").astype(f"datetime64[{unit}]").view(np.int64)


def _start(unit: str, days: np.ndarray) -> np.ndarray:
    """First day of the month or year."""
    began = days.view("datetime64[D]").astype(f"datetime64[{unit}]")
    return began.astype("datetime64[D]").view(np.int64)


def _weekday(days: np.ndarray) -> np.ndarray:
    return (days + 3) % 7  # 1970-01-01 was a Thursday


def _week(days: np.ndarray) -> np.ndarray:
    thursday = days - _weekday(days) + 3  # an ISO week belongs to the year of its Thursday
    return (thursday - _start("Y", thursday)) // 7 + 1


# Functions of days since 1970-01-01 and microseconds of the day.
FIELDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "year": lambda days, _: _since("Y", days) + 1970,
    "quarter": lambda days, _: _since("M", days) % 12 // 3 + 1,
    "month": lambda days, _: _since("M", days) % 12 + 1,
    "week": lambda days, _: _week(days),
    "day": lambda days, _: days - _start("M", days) + 1,
    "day_of_year": lambda days, _: days - _start("Y", days) + 1,
    "weekday": lambda days, _: _weekday(days),
    "weekend": lambda days, _: _weekday(days) >= 5,
    "hour": lambda _, time: time // _HOUR_US,
    "minute": lambda _, time: time % _HOUR_US // _MINUTE_US,
    "epoch_day": lambda days, _: days,
}


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
        since_1970 = np.where(present, chosen, 0)
        days = since_1970 // DAY_US
        time_of_day = since_1970 - days * DAY_US
        for field, columns in self.fields:
            out[columns] = np.where(present, field(days, time_of_day), -1)
