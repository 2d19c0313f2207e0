"""Opening a run: a new one, or one that a lost driver left."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raysys.arguments import checked
from raysys.errors import StorageError
from raysys.identity import digest
from raysys.imports import lazy_import
from raysys.tracking._curves import safe_name
from raysys.tracking._tracked_run import ALIVE, SYSTEM, TrackedRun, text
from raysys.tracking._tracking_server import (
    POINTER,
    TrackingTarget,
    connect,
    locked,
    require_unlocked,
    shown_uri,
    target_of,
    unavailable,
)

if TYPE_CHECKING:
    from raysys.storage import Storage

mlflow = lazy_import("mlflow")

PARENT = "mlflow.parentRunId"
COMMIT = "mlflow.source.git.commit"
IDENTITY = "raysys.identity"
_CONTENT = "raysys.content"
_OPENED = "raysys.opened"
_MAX_PARAMS = 100  # of one request
_PACKAGES = (
    "deepspeed", "modin", "optuna", "polars", "pyarrow", "ray", "raysys",
    "scikit-learn", "torch", "xgboost", "xgboost-ray",
)  # fmt: skip


class TracedTable(Protocol):
    """The part of `raysys.data.Table` that a run records."""

    @property
    def lineage(self) -> Any:
        """Lineage with `id`, and with `rows` and `fingerprint`, None while unknown."""


@checked
def open_run(
    storage: Storage,
    experiment: str,
    name: str,
    *,
    settings: Mapping[str, Any] | None = None,
    tables: Mapping[str, TracedTable | str] | None = None,
    tags: Mapping[str, object] | None = None,
    fresh: bool = False,
) -> TrackedRun:
    """Open a run in MLflow.

    With the folder of a run as `storage` (`TrackedRun.nest`) it becomes a child of that run, in
    its experiment and on its server. A run of this experiment, name and parent that was opened
    before and did not finish, since its driver died, is continued; so is one that finished with
    equal settings, tables and code.

    Args:
        storage: Folder of the work; it determines the server.
        experiment: The kind of work; MLflow's experiment, unless the run is a child.
        name: Name of the run.
        settings: Parameters by name; nested mappings, pydantic models and dataclasses become
            dotted names. Where a continued run had another value, the new one becomes the tag
            `now.NAME`, since MLflow never changes a parameter.
        tables: Input Tables, or fingerprints as text. A Table's lineage is always recorded, its
            fingerprint and rows only where known, for those cost a pass over the data.
        tags: Further tags.
        fresh: Whether an earlier run that has curves is not continued.

    Raises:
        UnavailableError: MLflow does not answer, or another process has locked its database.
        StorageError: No server is configured, its database is damaged, or the experiment was
            deleted.
    """
    place = target_of(storage)
    client = connect(place.uri)
    params = flat(settings or {})
    text_tags = {
        **_of_tables(tables or {}),
        **{key: text(value) for key, value in (tags or {}).items()},
    }
    code = {COMMIT: git_commit()}
    code |= {f"package.{package}": version for package, version in package_versions().items()}
    content = digest(*(sorted(part.items()) for part in (params, text_tags, code)))
    identity = digest(experiment, name, place.parent)
    own = {IDENTITY: identity, _CONTENT: content, "raysys.kind": experiment}
    if place.parent:
        own[PARENT] = place.parent
    try:
        with locked(place.uri):
            require_unlocked(place.uri)
            where = _experiment(client, experiment, place, storage)
            run = _earlier(client, where, identity, content, fresh)
            if new := run is None:
                run = client.create_run(where, run_name=name, tags=own)
        tracked = TrackedRun(place, run.info.run_id, new=new)
        if not new:
            client.update_run(run.info.run_id, status="RUNNING")
            before = run.data.params
            changed = {f"now.{key}": v for key, v in params.items() if before.get(key, v) != v}
            own |= {_OPENED: str(int(run.data.tags.get(_OPENED, 1)) + 1), **changed}
            params = {key: value for key, value in params.items() if key not in before}
        entries = [mlflow.entities.Param(key, value) for key, value in params.items()]
        for start in range(0, len(entries), _MAX_PARAMS):
            client.log_batch(run.info.run_id, params=entries[start : start + _MAX_PARAMS])
        tracked.log_tags({**own, **text_tags, **code, ALIVE: int(time.time() * 1000)})
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise unavailable(place.uri, error) from error
    tracked.keep_alive()
    return tracked


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Settings as text by dotted name; `{"a": {"b": 1}}` becomes `{"a.b": "1"}`."""
    params: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{before}{key}"
        if hasattr(value, "model_dump"):
            value = value.model_dump()
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, dict) and value:
            params |= flat(value, f"{name}.")
        else:
            params[safe_name(name)] = text(value)
    return params


def _of_tables(tables: Mapping[str, TracedTable | str]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for name, table in tables.items():
        if isinstance(table, str):
            tags[f"data.{name}.fingerprint"] = table
            continue
        lineage = table.lineage
        facts = {"lineage": lineage.id, "rows": lineage.rows, "fingerprint": lineage.fingerprint}
        tags |= {f"data.{name}.{k}": str(v) for k, v in facts.items() if v is not None}
    return tags


def _experiment(client: Any, name: str, place: TrackingTarget, storage: Storage) -> str:
    """Id of the parent's experiment, or of the named one."""
    if place.parent:
        try:
            return client.get_run(place.parent).info.experiment_id
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise StorageError(
                f"MLflow at {shown_uri(place.uri)} does not have run {place.parent}, to which "
                f"{storage.root} belongs: restore its database, or remove {storage.uri(POINTER)}"
            ) from error
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        files = f"{place.artifacts}/{safe_name(name)}" if place.artifacts else None
        try:
            return client.create_experiment(name, artifact_location=files)
        except mlflow.exceptions.MlflowException:  # another process created it
            if (experiment := client.get_experiment_by_name(name)) is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise StorageError(
            f"the experiment {name!r} was deleted in MLflow: restore it, `mlflow experiments "
            f"restore --experiment-id {experiment.experiment_id}`, or remove it with `mlflow gc`"
        )
    return experiment.experiment_id


def _earlier(client: Any, where: str, identity: str, content: str, fresh: bool) -> Any:
    """The run to continue, or None."""
    query = f"tags.`{IDENTITY}` = '{identity}'"
    newest_first = ["attributes.start_time DESC"]
    runs = client.search_runs([where], query, max_results=1, order_by=newest_first)
    if not runs:
        return None
    run = runs[0]
    ended = run.info.status == "FINISHED"
    if fresh and any(not name.startswith(SYSTEM) for name in run.data.metrics):
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")
        return None
    return None if ended and run.data.tags.get(_CONTENT) != content else run


def git_commit() -> str:
    """Commit of the code: RAYSYS_GIT_COMMIT, else of the checkout; "unknown" without either."""
    return os.environ.get("RAYSYS_GIT_COMMIT") or _commit_of(Path.cwd())


@functools.cache
def _commit_of(folder: Path) -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that a run's results depend on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}
