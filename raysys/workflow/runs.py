"""Results of a run's steps, for a notebook: read from the storage root, without a cluster.

Example:
    from raysys.workflow import runs
    runs.steps("recommender-20261130")
    towers = runs.result("recommender-20261130", "train towers")
"""

from __future__ import annotations

from typing import Any

from raysys.errors import RaysysError, StorageError, unknown_names
from raysys.storage import Storage, read_record
from raysys.workflow._step_results import StepResult, load

__all__ = ["result", "steps"]

_MAX_SHOWN = 5
_DONE = ("done", "skipped")


def result(run: Any, step: str, storage: Storage | None = None) -> Any:
    """The result of a step, also of a run that failed later.

    Tables come back as Tables, which read their rows where they are needed; objects of Ray's store
    as their values.

    Args:
        run: Name of the run or an unambiguous beginning of it, or a `tracking.RunRecord`.
        step: Name of the step.
        storage: The storage root, see `Storage` for the default.

    Raises:
        RaysysError: No run or step has that name, the step has no result, or this process cannot
            import code of the result.
        StorageError: The result was removed.
    """
    storage = storage or Storage()
    record = _record(run, storage)
    by_name = {entry["name"]: entry for entry in record["steps"]}
    if step not in by_name:
        names = ", ".join(map(repr, by_name))
        raise RaysysError(
            f"run {record['id']!r} has no step {unknown_names([step], by_name)}; its steps: {names}"
        )
    entry = by_name[step]
    if entry["state"] not in _DONE:
        done = ", ".join(repr(name) for name, other in by_name.items() if other["state"] in _DONE)
        raise RaysysError(
            f"step {step!r} of run {record['id']!r} has no result, it is {entry['state']}"
            f"{': ' + entry['error'] if entry.get('error') else ''}; steps with one: "
            f"{done or 'none'}"
        )
    path = f"steps/{record['job']}/{step}/{entry['key']}/result"
    try:
        return load(storage, StepResult(path, ""), values=True)
    except (ImportError, AttributeError) as error:
        raise RaysysError(
            f"the result of step {step!r} needs code that this process cannot import: {error}. "
            "Add the job's folder to PYTHONPATH, or start there"
        ) from error


def steps(run: Any, storage: Storage | None = None) -> dict[str, str]:
    """States of a run's steps by name: "done", "skipped", "failed", "running" or "waiting".

    Args:
        run: See `result`.
        storage: The storage root, see `Storage` for the default.

    Raises:
        RaysysError: No run has that name.
    """
    record = _record(run, storage or Storage())
    return {entry["name"]: entry["state"] for entry in record["steps"]}


def _record(run: Any, storage: Storage) -> dict[str, Any]:
    """The record of a run by its name."""
    name = str(getattr(run, "name", run))
    record = read_record(storage, f"runs/{name}/run.json")
    if record is None:
        names = storage.names("runs")
        matches = [other for other in names if other.startswith(name)]
        if len(matches) > 1:
            newest = sorted(matches, key=lambda other: other.split("-")[-3:])[-_MAX_SHOWN:]
            raise RaysysError(
                f"{len(matches)} runs match {name!r}, the newest: {', '.join(reversed(newest))}: "
                "give more of the name"
            )
        if not matches:
            raise RaysysError(
                f"no run {unknown_names([name], names)} in {storage.root}: `raysys runs` lists them"
            )
        record = read_record(storage, f"runs/{matches[0]}/run.json")
    if record is None:
        raise StorageError(f"run {name!r} has no record in {storage.root}: it has not begun")
    return record
