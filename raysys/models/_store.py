"""A model store on MLflow, with the files under the storage root."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from raysys import audit
from raysys.errors import StorageError
from raysys.secrets import shown
from raysys.telemetry import metrics
from raysys.tracking import connect, tracking_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from raysys.storage import Storage
    from raysys.tracking import TrackedRun

_MANIFEST = "model.json"
_DIGEST_TAG = "raysys.sha256"
_log = logging.getLogger("raysys.models")


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


class ModelStore:
    """Models as folders under the storage root, registered in MLflow with aliases.

    The MLflow server is that of the root's runs: `raysys.tracking.tracking_uri`.
    """

    def __init__(self, storage: Storage) -> None:
        """Open the store; nothing is contacted before the first call.

        Args:
            storage: Where model files are written.
        """
        self.storage = storage

    def save(
        self,
        name: str,
        write: Callable[[Path], None],
        *,
        manifest: Mapping[str, Any],
        run: TrackedRun,
        path: str,
    ) -> StoredModel:
        """Store a model; `promote` points an alias at it.

        Args:
            name: The registered name.
            write: Fills a folder with the model's files; called in a task.
            manifest: Signature, settings, data fingerprint, metrics; stored beside the files.
            run: The run that made the model.
            path: Storage path of the folder.
        """
        from mlflow.exceptions import MlflowException

        task = ray.remote(_write).options(name=f"store {name}")
        sha256 = ray.get(task.remote(self.storage, path, write, dict(manifest)))
        client = connect(tracking_uri(self.storage))
        try:
            client.get_registered_model(name)
        except MlflowException:
            client.create_registered_model(name)
        version = client.create_model_version(
            name, self.storage.uri(path), run.run_id, tags={_DIGEST_TAG: sha256}
        ).version
        metrics.MODELS_STORED.inc(1, {"model": name})
        return StoredModel(name, int(version), path, sha256)

    def promote(self, model: StoredModel, alias: str = "champion") -> None:
        """Point an alias at a version; the version that it pointed at stays in the store.

        Raises:
            StorageError: The store has no such version.
        """
        from mlflow.exceptions import MlflowException

        uri = tracking_uri(self.storage)
        audit.record(self.storage, "model.promote", model.name, version=model.version, alias=alias)
        try:
            connect(uri).set_registered_model_alias(model.name, alias, str(model.version))
        except MlflowException as error:
            raise StorageError(
                f"no version {model.version} of model {model.name!r} in {shown(uri)}: run the "
                "job that saves it"
            ) from error
        _log.info("model %s version %d is %s from now on", model.name, model.version, alias)
        metrics.MODELS_PROMOTED.inc(1, {"model": model.name, "alias": alias})

    def get(self, name: str, alias: str = "champion") -> StoredModel:
        """The version that an alias points at.

        Raises:
            StorageError: There is no such model or alias.
        """
        from mlflow.exceptions import MlflowException

        uri = tracking_uri(self.storage)
        client = connect(uri)
        try:
            found = client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            raise StorageError(
                f"no model {name!r} with alias {alias!r} in {shown(uri)}: run the job that saves it"
            ) from error
        path = str(found.source).removeprefix(f"{self.storage.root}/")
        return StoredModel(name, int(found.version), path, found.tags.get(_DIGEST_TAG, ""))


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
