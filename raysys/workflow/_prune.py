"""Removing steps' results that no run is likely to take again."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from raysys import audit

if TYPE_CHECKING:
    from raysys.storage import Storage


def prune(storage: Storage, older_than: timedelta, now: datetime | None = None) -> list[str]:
    """Remove the results of steps that were computed longer ago; a later run computes them again.

    Models, indexes and runs' records are not among them. An audit line stays for each.

    Args:
        storage: The storage root.
        older_than: Their age.
        now: With a time zone; the clock's if it is left out.

    Returns:
        The folders that were removed, as storage paths.
    """
    oldest, removed = (now or datetime.now(UTC)) - older_than, []
    for job in storage.names("steps"):
        for step in storage.names(f"steps/{job}"):
            for key in storage.names(f"steps/{job}/{step}"):
                path = f"steps/{job}/{step}/{key}"
                kept = storage.read_bytes(f"{path}/step.json")
                if kept is None or _computed(json.loads(kept)["run"]) >= oldest:
                    continue  # unfinished: a run may be at it
                audit.record(storage, "result.delete", path)
                storage.remove(f"{path}/step.json")  # first, so that none takes half of it
                storage.remove(path)
                removed.append(path)
    return removed


def _computed(run: str) -> datetime:
    """When a run began, of its name: JOB-YYYYmmdd-HHMMSS-xxxx."""
    day, moment = run.split("-")[-3:-1]
    return datetime.strptime(f"{day}{moment}", "%Y%m%d%H%M%S").replace(tzinfo=UTC)
