"""A model store and run record on MLflow, with the files under the storage root."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys.errors import StorageError

if TYPE_CHECKING:
    from raysys.storage import Storage

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
_MANIFEST = "model.json"
_DIGEST_TAG = "raysys.sha256"


@dataclass(frozen=True)
class StoredModel:
    """A version of a model in the store.

    Attributes:
        name: The registered name.
        version: Counted by the store from 1.
        path: Its folder, as a storage path.
        sha256: Of its files, as the store recorded it apart from them.
    """

    name: str
    version: int
    path: str
    sha256: str

    def fetch(self, storage: Storage) -> Path:
        """A local folder with the model's files.

        Raises:
            StorageError: They are missing, or not those that were stored.
        """
        folder = storage.fetch(self.path)
        found = _digest(folder)
        if found != self.sha256:
            raise StorageError(
                f"the files of {self.name!r} version {self.version} at {storage.uri(self.path)} "
                f"are not those that were stored (SHA-256 {found}, recorded {self.sha256}): "
                "restore them, or store the model again"
            )
        return folder

    def manifest(self, storage: Storage) -> dict[str, Any]:
        """Signature, data fingerprint, settings and metrics, as they were saved."""
        return json.loads((self.fetch(storage) / _MANIFEST).read_text())


class TrackedRun:
    """A run in MLflow."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def log_curve(self, name: str, values: Sequence[float]) -> None:
        """Record a measurement for each step, from step 1."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, float(value), now, step) for step, value in enumerate(values, 1)]
        self._client.log_batch(self.run_id, metrics=points)

    def end(self, status: str, metrics: Mapping[str, float]) -> None:
        """Close the run with its results."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, float(value), now, 0) for name, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=points)
        self._client.set_terminated(self.run_id, status)


class ModelStore:
    """Models as folders under the storage root, registered in MLflow with aliases.

    The MLflow server is the one that MLFLOW_TRACKING_URI names, else a SQLite file under a
    local storage root.
    """

    def __init__(self, storage: Storage) -> None:
        """Open the store; nothing is contacted before the first call.

        Args:
            storage: Where model files are written.
        """
        self.storage = storage

    def start_run(self, experiment: str, name: str, settings: Mapping[str, Any]) -> TrackedRun:
        """Open a run in MLflow and record its settings."""
        from mlflow.entities import Param

        client = self._client()
        found = client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else client.create_experiment(experiment)
        run = client.create_run(number, run_name=name)
        settings_logged = [Param(key, str(value)[:500]) for key, value in settings.items()]
        client.log_batch(run.info.run_id, params=settings_logged)
        return TrackedRun(client, run.info.run_id)

    def save(
        self,
        name: str,
        write: Callable[[Path], None],
        *,
        manifest: Mapping[str, Any],
        run: TrackedRun,
        path: str,
        alias: str = "champion",
    ) -> StoredModel:
        """Store a model and point an alias at it.

        Args:
            name: The registered name.
            write: Fills a folder with the model's files; called in a task.
            manifest: Signature, settings, data fingerprint, metrics; stored beside the files.
            run: The run that made the model.
            path: Storage path of the folder.
            alias: Points at this version afterwards; the older one stays.
        """
        import ray
        from mlflow.exceptions import MlflowException

        task = ray.remote(_write).options(name=f"store {name}")
        sha256 = ray.get(task.remote(self.storage, path, write, dict(manifest)))
        client = self._client()
        try:
            client.get_registered_model(name)
        except MlflowException:
            client.create_registered_model(name)
        version = client.create_model_version(
            name, self.storage.uri(path), run.run_id, tags={_DIGEST_TAG: sha256}
        ).version
        client.set_registered_model_alias(name, alias, version)
        return StoredModel(name, int(version), path, sha256)

    def get(self, name: str, alias: str = "champion") -> StoredModel:
        """The version that an alias points at.

        Raises:
            StorageError: There is no such model or alias.
        """
        from mlflow.exceptions import MlflowException

        try:
            found = self._client().get_model_version_by_alias(name, alias)
        except MlflowException as error:
            raise StorageError(
                f"no model {name!r} with alias {alias!r} in {self.tracking_uri}: run the job that "
                "saves it"
            ) from error
        path = str(found.source).removeprefix(f"{self.storage.root}/")
        return StoredModel(name, int(found.version), path, found.tags.get(_DIGEST_TAG, ""))

    @property
    def tracking_uri(self) -> str:
        """The MLflow server or database.

        Raises:
            StorageError: The root is remote, where SQLite cannot live, and no server is named.
        """
        if given := os.environ.get(TRACKING_VARIABLE):
            return given
        if not self.storage.is_local:
            raise StorageError(
                f"the storage root {self.storage.root} is remote and {TRACKING_VARIABLE} is not "
                "set: name an MLflow server with it"
            )
        return f"sqlite:///{self.storage.uri('mlflow.db')}"

    def _client(self) -> Any:
        import logging

        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        if self.storage.is_local:
            Path(self.storage.root).mkdir(parents=True, exist_ok=True)
        return MlflowClient(self.tracking_uri)


def _write(
    storage: Storage, path: str, write: Callable[[Path], None], manifest: dict[str, Any]
) -> str:
    """Fill a model's folder; the digest of its files."""
    with storage.new_dir(path) as folder:
        write(folder)
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2, default=str))
        return _digest(folder)


def _digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = file.relative_to(folder).as_posix()
        if name == "_COMPLETE":  # the mark that a remote root's upload has ended
            continue
        with file.open("rb") as content:
            part = hashlib.file_digest(content, "sha256").hexdigest()
        digest.update(f"{name}\n{part}\n".encode())
    return digest.hexdigest()
