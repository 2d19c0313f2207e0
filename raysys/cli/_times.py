"""Times and durations in the forms of the command line: `30d`, `2026-11-22`."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from raysys.errors import RaysysError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def duration(text: str) -> timedelta:
    """A duration such as `90s`, `30m`, `12h`, `30d`, `2w`.

    Raises:
        RaysysError: The text is not a duration.
    """
    if match := re.fullmatch(r"(\d{1,6})([smhdw])", text):
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    raise RaysysError(f"{text!r} is not a duration: give one such as 90s, 30m, 12h, 30d or 2w")


def moment(text: str) -> datetime:
    """A time given by its age, or an ISO 8601 date or time (local without an offset).

    Raises:
        RaysysError: The text is neither.
    """
    with suppress(ValueError):
        return datetime.fromisoformat(text).astimezone(UTC)
    try:
        return datetime.now(UTC) - duration(text)
    except RaysysError:
        raise RaysysError(
            f"{text!r} is not a time: give an age such as 12h or 30d, or a date such as "
            "2026-11-22 or 2026-11-22T09:30"
        ) from None


def span(seconds: float) -> str:
    """Seconds, short: `4 s`, `3 m 20 s`, `2 h 5 m`, `3 d 4 h`."""
    total = int(seconds)
    parts = [(total // 86400, "d"), (total // 3600 % 24, "h"), (total // 60 % 60, "m"),
             (total % 60, "s")]  # fmt: skip
    first = next((n for n, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])


def local(time_s: float) -> str:
    """A Unix time in the local time zone, to the minute."""
    return f"{datetime.fromtimestamp(time_s):%Y-%m-%d %H:%M}"
