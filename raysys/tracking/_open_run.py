"""Opening a run: a new one, or the one that a lost driver left."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any, Protocol

from raysys.errors import StorageError
from raysys.tracking._code_version import git_commit, package_versions
from raysys.tracking._curves import safe_name
from raysys.tracking._tracked_run import SYSTEM, TrackedRun, text
from raysys.tracking._tracking_server import connect, locked, place_of, unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raysys.storage import Storage

PARENT = "mlflow.parentRunId"
COMMIT = "mlflow.source.git.commit"
IDENTITY = "raysys.identity"
_CONTENT = "raysys.content"
_OPENED = "raysys.opened"
_MOST_PARAMS = 100  # at once


class Traced(Protocol):
    """What is recorded of a `raysys.data.Table`."""

    @property
    def lineage(self) -> Any:
        """With `id`, `rows` and `fingerprint`, the latter two None while they are not known."""


def open_run(
    storage: Storage,
    experiment: str,
    name: str,
    *,
    settings: Mapping[str, Any] | None = None,
    tables: Mapping[str, Traced | str] | None = None,
    tags: Mapping[str, object] | None = None,
    fresh: bool = False,
) -> TrackedRun:
    """Open a run in MLflow.

    With the folder of a run as `storage` (`TrackedRun.nest`) it becomes a child of that run, in
    its experiment and on its server. A run of this experiment, name and parent that was opened
    before and did not finish, since its driver died, is continued; so is one that finished with
    equal settings, tables and code.

    Args:
        storage: Where the work leaves its files; says where it is recorded.
        experiment: The kind of work; MLflow's experiment, unless the run is a child.
        name: Of the run.
        settings: By name; mappings, pydantic models and dataclasses among them become names
            with dots. Where a continued run had another value, the new one becomes the tag
            `now.NAME`: MLflow never changes a setting.
        tables: What the work reads: Tables, or fingerprints as text. A Table's lineage is always
            recorded, its fingerprint and rows where they are known, for those cost a pass.
        tags: More text to search by.
        fresh: The work begins anew: an earlier run that has curves is not continued.

    Raises:
        UnavailableError: MLflow does not answer.
        StorageError: There is no place to record runs, or the experiment was deleted.
    """
    from mlflow.exceptions import MlflowException

    place = place_of(storage)
    client = connect(place.uri)
    given = flat(settings or {})
    known = {
        **_of_tables(tables or {}),
        **{key: text(value) for key, value in (tags or {}).items()},
    }
    code = {COMMIT: git_commit()}
    code |= {f"package.{package}": version for package, version in package_versions().items()}
    content = _digest([given, known, code])
    identity = _digest([experiment, name, place.parent])
    own = {IDENTITY: identity, _CONTENT: content, "raysys.kind": experiment}
    if place.parent:
        own[PARENT] = place.parent
    try:
        with locked(place.uri):
            where = _experiment(client, experiment, place.parent, place.artifacts)
            run = _earlier(client, where, identity, content, fresh)
            if new := run is None:
                run = client.create_run(where, run_name=name, tags=own)
        tracked = TrackedRun(place, run.info.run_id, new=new)
        if not new:
            client.update_run(run.info.run_id, status="RUNNING")
            before = run.data.params
            changed = {f"now.{key}": v for key, v in given.items() if before.get(key, v) != v}
            own |= {_OPENED: str(int(run.data.tags.get(_OPENED, 1)) + 1), **changed}
            given = {key: value for key, value in given.items() if key not in before}
        _log_settings(client, run.info.run_id, given)
        tracked.log_tags({**own, **known, **code})
    except (MlflowException, OSError) as error:
        raise unavailable(place.uri, error) from error
    return tracked


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Settings as text by name; `{"a": {"b": 1}}` is `{"a.b": "1"}`."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{before}{key}"
        if hasattr(value, "model_dump"):
            value = value.model_dump()
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, dict) and value:
            found |= flat(value, f"{name}.")
        else:
            found[safe_name(name)] = text(value)
    return found


def _of_tables(tables: Mapping[str, Traced | str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, table in tables.items():
        if isinstance(table, str):
            found[f"data.{name}.fingerprint"] = table
            continue
        for fact in ("id", "rows", "fingerprint"):
            known = getattr(table.lineage, fact)
            if known is not None:
                found[f"data.{name}.{'lineage' if fact == 'id' else fact}"] = str(known)
    return found


def _experiment(client: Any, name: str, parent: str | None, artifacts: str | None) -> str:
    """The experiment's id: that of the parent, or by name."""
    if parent:
        return client.get_run(parent).info.experiment_id
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        place = f"{artifacts}/{safe_name(name)}" if artifacts else None
        try:
            return client.create_experiment(name, artifact_location=place)
        except MlflowException:  # another process has just made it on the server
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise StorageError(
            f"the experiment {name!r} was deleted in MLflow: restore it, `mlflow experiments "
            f"restore --experiment-id {found.experiment_id}`, or remove it with `mlflow gc`"
        )
    return found.experiment_id


def _earlier(client: Any, where: str, identity: str, content: str, fresh: bool) -> Any:
    """The run to go on with, or None."""
    known = client.search_runs(
        [where],
        f"tags.`{IDENTITY}` = '{identity}'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    if not known:
        return None
    run = known[0]
    ended = run.info.status == "FINISHED"
    if fresh and any(not name.startswith(SYSTEM) for name in run.data.metrics):
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")
        return None
    return None if ended and run.data.tags.get(_CONTENT) != content else run


def _log_settings(client: Any, run_id: str, settings: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    params = [Param(key, value) for key, value in settings.items()]
    for start in range(0, len(params), _MOST_PARAMS):
        client.log_batch(run_id, params=params[start : start + _MOST_PARAMS])


def _digest(value: Any) -> str:
    said = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
