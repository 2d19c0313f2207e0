"""Calendar fields of times, on int64 arrays of any shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raysys.features._raw_inputs import DAY_US

if TYPE_CHECKING:
    from collections.abc import Callable

_HOUR_US, _MINUTE_US = 3_600_000_000, 60_000_000


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


def split(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Days since 1970-01-01 and microseconds of the day."""
    days = times // DAY_US
    return days, times - days * DAY_US
