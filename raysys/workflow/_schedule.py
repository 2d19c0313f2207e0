"""When jobs are to run by the clock: what is kept of a schedule, and what is due."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from raysys import audit
from raysys.errors import RaysysError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from raysys.storage import Storage

_FOLDER = "schedules"


@dataclass(frozen=True)
class Schedule:
    """A job that runs by the clock.

    Attributes:
        name: Of the schedule; the jobs' ids begin with it.
        cron: Five fields: minute, hour, day of the month, month, day of the week.
        zone: The time zone that they are meant in.
        command: What runs, in a copy of the folder that the schedule was made in.
        env: Environment variables of the job.
        since: Unix time in seconds from which on it counts.
    """

    name: str
    cron: str
    zone: str
    command: str
    env: Mapping[str, str]
    since: float

    def due(self, last_s: float | None, now_s: float) -> float | None:
        """The time for which a run is due now; None if there is none.

        Of several that were missed, as while the cluster was down, it is the last: a job that
        runs every hour on what is there has nothing to gain from running three times.

        Args:
            last_s: Unix time in seconds for which the last run was started.
            now_s: Unix time in seconds.
        """
        before = _moments(self.cron, self.zone, now_s, reverse=True)
        found = next(before)
        return found if found > max(last_s or 0.0, self.since) else None

    def next(self, now_s: float) -> float:
        """Unix time in seconds of the next run."""
        return next(_moments(self.cron, self.zone, now_s))


def add(
    storage: Storage,
    name: str,
    cron: str,
    command: str,
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    zone: str = "UTC",
    now_s: float | None = None,
) -> Schedule:
    """Keep a schedule and a copy of the folder; one of that name is replaced.

    Args:
        storage: Where.
        name: Of the schedule.
        cron: See `Schedule`.
        command: What runs.
        folder: What it runs in; packed as it is.
        env: Environment variables of the job.
        zone: A time zone, such as Europe/Berlin.
        now_s: Unix time in seconds; the clock's if it is left out.

    Raises:
        RaysysError: The name, the expression or the zone is none.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise RaysysError(f"schedule {name!r}: use up to 64 letters, digits, _, . and -")
    now_s = datetime.now(UTC).timestamp() if now_s is None else now_s
    next(_moments(cron, zone, now_s))  # raises what is wrong with them
    made = Schedule(name, cron, zone, command, dict(env or {}), now_s)
    audit.record(storage, "schedule.add", name, cron=cron, zone=zone, command=command)
    with tempfile.TemporaryDirectory(prefix="raysys-") as place:
        packed = shutil.make_archive(f"{place}/code", "zip", folder)
        storage.write_bytes(f"{_FOLDER}/{name}/code.zip", Path(packed).read_bytes())
    storage.write_json(f"{_FOLDER}/{name}/schedule.json", dataclasses.asdict(made))
    return made


def remove(storage: Storage, name: str) -> None:
    """Forget a schedule; a run that it has started goes on.

    Raises:
        RaysysError: There is none of that name.
    """
    if not storage.exists(f"{_FOLDER}/{name}/schedule.json"):
        known = ", ".join(one.name for one in every(storage)) or "none"
        raise RaysysError(f"no schedule {name!r}; there are: {known}")
    audit.record(storage, "schedule.remove", name)
    for file in ("schedule.json", "last.json", "code.zip"):
        storage.remove(f"{_FOLDER}/{name}/{file}")


def every(storage: Storage) -> list[Schedule]:
    """All schedules, by name."""
    kept = [storage.read_bytes(f"{_FOLDER}/{n}/schedule.json") for n in storage.names(_FOLDER)]
    return [Schedule(**json.loads(one)) for one in kept if one]


def last(storage: Storage, name: str) -> dict[str, object]:
    """What is known of a schedule's last run: `for_s`, Unix time, and `job`, its id; or nothing."""
    kept = storage.read_bytes(f"{_FOLDER}/{name}/last.json")
    return json.loads(kept) if kept else {}


def note(storage: Storage, name: str, for_s: float, job: str) -> None:
    """Keep which run was started last."""
    storage.write_json(f"{_FOLDER}/{name}/last.json", {"for_s": for_s, "job": job})


def code(storage: Storage, name: str, folder: Path) -> None:
    """Unpack the copy of the folder that a schedule runs in."""
    packed = storage.fetch(f"{_FOLDER}/{name}/code.zip")
    shutil.unpack_archive(packed, folder, "zip")


def _moments(cron: str, zone: str, start_s: float, reverse: bool = False) -> Iterator[float]:
    """Unix times of an expression from a time on, or back from it, that time included."""
    try:
        place = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise RaysysError(f"no time zone {zone!r}: give one such as Europe/Berlin") from error
    start = datetime.fromtimestamp(start_s + (1 if reverse else 0), place)
    try:
        for found in CronSim(cron, start, reverse=reverse):
            yield found.timestamp()
    except CronSimError as error:
        raise RaysysError(
            f"{cron!r} is no cron expression ({error}): give minute, hour, day of the month, "
            "month and day of the week, such as '30 2 * * *' for half past two each night"
        ) from error
    raise RaysysError(f"{cron!r} names no moment of the next 50 years")
