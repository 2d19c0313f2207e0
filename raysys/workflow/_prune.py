"""Removal of old step results."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from raysys import audit

if TYPE_CHECKING:
    from raysys.storage import Storage


def prune(storage: Storage, older_than: timedelta, now: datetime | None = None) -> list[str]:
    """Remove step results of an age; a later run computes them again.

    Models, indexes and records of runs stay. Each removal has an audit entry.

    Args:
        storage: The storage root.
        older_than: Minimum age.
        now: Current time with a time zone; the system clock by default.

    Returns:
        Storage paths of the removed folders.
    """
    oldest, removed = (now or datetime.now(UTC)) - older_than, []
    for job in storage.names("steps"):
        for step in storage.names(f"steps/{job}"):
            for key in storage.names(f"steps/{job}/{step}"):
                path = f"steps/{job}/{step}/{key}"
                record = storage.read_bytes(f"{path}/step.json")
                if record is None or _start_of(json.loads(record)["run"]) >= oldest:
                    continue  # unfinished: a run may be computing it
                audit.record(storage, "result.delete", path)
                storage.remove(f"{path}/step.json")  # first, so that no run takes a part of it
                storage.remove(path)
                removed.append(path)
    return removed


def _start_of(run: str) -> datetime:
    """Start of a run, from its name: JOB-YYYYmmdd-HHMMSS-xxxx."""
    day, moment = run.split("-")[-3:-1]
    return datetime.strptime(f"{day}{moment}", "%Y%m%d%H%M%S").replace(tzinfo=UTC)
