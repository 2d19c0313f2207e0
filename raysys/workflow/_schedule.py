"""Schedules of jobs: cron expressions, their due runs, and their files in storage."""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from raysys import audit
from raysys.errors import RaysysError
from raysys.storage import read_records

if TYPE_CHECKING:
    from raysys.storage import Storage

REBOOT = "@reboot"  # as in crontab: a run at each start of the cluster
_FOLDER = "schedules"


@dataclass(frozen=True)
class Schedule:
    """A job that the cluster runs at the times of a cron expression, or whenever it starts.

    Attributes:
        name: Name of the schedule, and prefix of its jobs' ids.
        cron: Five fields: minute, hour, day of the month, month, day of the week; or `@reboot`.
        timezone: Time zone of the expression.
        command: Command line, run in a copy of the folder in which the schedule was created.
        env: Environment variables of the job.
        start_s: Unix time in seconds before which no run is due.
    """

    name: str
    cron: str
    timezone: str
    command: str
    env: Mapping[str, str]
    start_s: float

    def due(self, last_s: float | None, now_s: float, cluster_start_s: float) -> float | None:
        """The time for which a run is due now; None if no run is due.

        Of several missed runs, as while the cluster was down, only the last is due: an hourly job
        on the current data gains nothing from three runs in a row. `last_s` is the time for which
        the last run was started; all are Unix times in seconds.
        """
        if self.cron == REBOOT:
            latest = cluster_start_s
        else:
            latest = next(_moments(self.cron, self.timezone, now_s, reverse=True))
        return latest if latest > max(last_s or 0.0, self.start_s) else None

    def next(self, now_s: float) -> float | None:
        """Unix time in seconds of the next run; None for `@reboot`."""
        if self.cron == REBOOT:
            return None
        return next(_moments(self.cron, self.timezone, now_s))


def add(
    storage: Storage, name: str, cron: str, command: str, folder: Path, *,
    env: Mapping[str, str] | None = None, timezone: str = "UTC", now_s: float | None = None,
) -> Schedule:  # fmt: skip
    """Store a `Schedule` and all files of the job's folder, replacing one of the same name.

    Raises:
        RaysysError: The name, the expression or the time zone is invalid.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise RaysysError(f"schedule {name!r}: use up to 64 letters, digits, _, . and -")
    now_s = datetime.now(UTC).timestamp() if now_s is None else now_s
    if cron != REBOOT:
        next(_moments(cron, timezone, now_s))  # raises on an invalid expression
    schedule = Schedule(name, cron, timezone, command, dict(env or {}), now_s)
    audit.record(storage, "schedule.add", name, cron=cron, timezone=timezone, command=command)
    with tempfile.TemporaryDirectory(prefix="raysys-") as temporary:
        packed = shutil.make_archive(f"{temporary}/code", "zip", folder)
        storage.write_bytes(f"{_FOLDER}/{name}/code.zip", Path(packed).read_bytes())
    storage.write_json(f"{_FOLDER}/{name}/schedule.json", dataclasses.asdict(schedule))
    return schedule


def remove(storage: Storage, name: str) -> None:
    """Remove a schedule; a run that has started continues.

    Raises:
        RaysysError: No schedule has that name.
    """
    if not storage.exists(f"{_FOLDER}/{name}/schedule.json"):
        names = ", ".join(schedule.name for schedule in list_schedules(storage)) or "none"
        raise RaysysError(f"no schedule {name!r}; there are: {names}")
    audit.record(storage, "schedule.remove", name)
    for file in ("schedule.json", "last.json", "code.zip"):
        storage.remove(f"{_FOLDER}/{name}/{file}")


def list_schedules(storage: Storage) -> list[Schedule]:
    """All schedules, by name; one whose file is damaged is left out with a warning."""
    paths = [f"{_FOLDER}/{name}/schedule.json" for name in storage.names(_FOLDER)]
    return read_records(storage, paths, lambda fields: Schedule(**fields))


def last_run(storage: Storage, name: str) -> dict[str, object]:
    """The last run of a schedule: `for_s`, its Unix time, and `job`, its id; {} without one."""
    records: list[dict[str, object]] = read_records(storage, [f"{_FOLDER}/{name}/last.json"])
    return records[0] if records else {}


def record_run(storage: Storage, name: str, for_s: float, job: str) -> None:
    """Record the last run of a schedule."""
    storage.write_json(f"{_FOLDER}/{name}/last.json", {"for_s": for_s, "job": job})


def unpack_code(storage: Storage, name: str, folder: Path) -> None:
    """Unpack the copy of a schedule's working directory into a folder."""
    packed = storage.fetch(f"{_FOLDER}/{name}/code.zip")
    shutil.unpack_archive(packed, folder, "zip")


def _moments(cron: str, timezone: str, start_s: float, reverse: bool = False) -> Iterator[float]:
    """Unix times of an expression from a time on, or back from it, that time included."""
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise RaysysError(
            f"unknown time zone {timezone!r}: give one such as Europe/Berlin"
        ) from error
    if len(fields := cron.split()) != 5:
        raise RaysysError(
            f"{cron!r} has {len(fields)} fields, not 5: give minute, hour, day of the month, month "
            f"and day of the week, without seconds, or {REBOOT}"
        )
    start = datetime.fromtimestamp(start_s + (1 if reverse else 0), zone)
    try:
        for moment in CronSim(cron, start, reverse=reverse):
            yield moment.timestamp()
    except CronSimError as error:
        raise RaysysError(
            f"{cron!r} is not a cron expression ({error}): give minute, hour, day of the month, "
            "month and day of the week, such as '30 2 * * *' for half past two each night"
        ) from error
    raise RaysysError(f"{cron!r} matches no time within 50 years")
