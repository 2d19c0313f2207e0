"""Times as people write and read them: `30d`, `2026-11-22`."""

import re
from datetime import UTC, datetime, timedelta

from raysys.errors import RaysysError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def duration(text: str) -> timedelta:
    """A span such as `90s`, `30m`, `12h`, `30d`, `2w`.

    Raises:
        RaysysError: It is none.
    """
    if found := re.fullmatch(r"(\d{1,6})([smhdw])", text):
        return timedelta(**{_UNITS[found[2]]: int(found[1])})
    raise RaysysError(f"{text!r} is no span of time: give one such as 90s, 30m, 12h, 30d or 2w")


def moment(text: str) -> datetime:
    """A time that is so long ago, or an ISO 8601 date or time (local without an offset).

    Raises:
        RaysysError: It is neither.
    """
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        pass
    try:
        return datetime.now(UTC) - duration(text)
    except RaysysError:
        raise RaysysError(
            f"{text!r} is no time: give a span until now such as 12h or 30d, or a date such as "
            "2026-11-22 or 2026-11-22T09:30"
        ) from None


def span(seconds: float) -> str:
    """Seconds, short: `4 s`, `3 m 20 s`, `2 h 5 m`, `3 d 4 h`."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"),
             (whole % 60, "s")]  # fmt: skip
    first = next((n for n, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])


def local(when: datetime | float) -> str:
    """A time of this machine's zone, to the minute."""
    found = when if isinstance(when, datetime) else datetime.fromtimestamp(when, UTC)
    return f"{found.astimezone():%Y-%m-%d %H:%M}"
