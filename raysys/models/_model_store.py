"""Model store: versions and aliases in MLflow, files under the storage root."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import ray

from raysys import audit
from raysys.arguments import checked
from raysys.errors import StorageError, unknown_names
from raysys.imports import lazy_import
from raysys.secrets import shown
from raysys.telemetry import metrics
from raysys.tracking import connect, tracking_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from raysys.storage import Storage
    from raysys.tracking import TrackedRun

exceptions = lazy_import("mlflow.exceptions")

_MANIFEST = "model.json"
_DIGEST_TAG = "raysys.sha256"
_log = logging.getLogger("raysys.models")


@dataclass(frozen=True, repr=False)
class StoredModel:
    """A version of a model in the store.

    Attributes:
        name: Name of the registered model.
        version: Version number, from 1.
        path: Storage path of the folder.
        sha256: SHA-256 of the files, hex, recorded in MLflow apart from them.
    """

    name: str
    version: int
    path: str
    sha256: str

    def __repr__(self) -> str:
        return f"StoredModel({self.name!r}, version {self.version}, {self.path!r})"

    def _repr_html_(self) -> str:
        facts = {"version": self.version, "path": self.path, "SHA-256": f"{self.sha256[:12]}..."}
        cells = "".join(f"<tr><th>{k}</th><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
        return f"<table><caption>{escape(self.name)}</caption>{cells}</table>"

    @checked
    def fetch(self, storage: Storage) -> Path:
        """A local folder with the model's files.

        Raises:
            StorageError: The files are missing or were changed.
        """
        folder = storage.fetch(self.path)
        actual = _digest(folder)
        if actual != self.sha256:
            raise StorageError(
                f"the files of {self.name!r} version {self.version} at {storage.uri(self.path)} "
                f"were changed (SHA-256 {actual}, recorded {self.sha256}): restore them, or "
                "register the model again"
            )
        return folder

    @checked
    def manifest(self, storage: Storage) -> dict[str, Any]:
        """Signature, data fingerprint, settings and metrics, as registered."""
        return json.loads((self.fetch(storage) / _MANIFEST).read_text())


class ModelStore:
    """Registered models: folders under the storage root, with versions and aliases in MLflow.

    The tracking server is that of the root's runs, `raysys.tracking.tracking_uri`.
    """

    @checked
    def __init__(self, storage: Storage) -> None:
        """Open the store of a storage root; the server is contacted by the first call."""
        self.storage = storage

    def __repr__(self) -> str:
        return f"ModelStore({self.storage.root!r})"

    @checked
    def register(
        self, name: str, write: Callable[[Path], None], *,
        manifest: Mapping[str, Any] | None = None, run: TrackedRun | None = None,
        path: str | None = None, in_task: bool = True,
    ) -> StoredModel:  # fmt: skip
        """Store a model as a new version; `promote` points an alias at it.

        Args:
            name: Name of the registered model.
            write: Function that fills a folder with the model's files.
            manifest: Signature, settings, data fingerprint, metrics; stored beside the files.
            run: Run that trained the model.
            path: Storage path of the folder; default a new one under `models/<name>`.
            in_task: Call `write` in a task; otherwise in this process, without a cluster.
        """
        path = path or f"models/{name}/{uuid.uuid4().hex}"
        arguments = self.storage, path, write, dict(manifest or {})
        if in_task:
            task = ray.remote(_write).options(name=f"register {name}")
            sha256 = ray.get(task.remote(*arguments))
        else:
            sha256 = _write(*arguments)
        client = connect(tracking_uri(self.storage))
        try:
            client.get_registered_model(name)
        except exceptions.MlflowException:
            client.create_registered_model(name)
        version = client.create_model_version(
            name, self.storage.uri(path), run and run.run_id, tags={_DIGEST_TAG: sha256}
        ).version
        metrics.MODELS_STORED.inc(1, {"model": name})
        return StoredModel(name, int(version), path, sha256)

    @checked
    def promote(self, model: StoredModel, alias: str = "champion") -> None:
        """Point an alias at a version; the previous version stays in the store.

        Raises:
            StorageError: The model has no such version.
        """
        uri = tracking_uri(self.storage)
        audit.record(self.storage, "model.promote", model.name, version=model.version, alias=alias)
        try:
            connect(uri).set_registered_model_alias(model.name, alias, str(model.version))
        except exceptions.MlflowException as error:
            raise StorageError(
                f"no version {model.version} of model {model.name!r} in {shown(uri)}: run the "
                "job that registers it"
            ) from error
        _log.info("model %s version %d is now %s", model.name, model.version, alias)
        metrics.MODELS_PROMOTED.inc(1, {"model": model.name, "alias": alias})

    @checked
    def get(self, name: str, alias: str = "champion", version: int | None = None) -> StoredModel:
        """The version that an alias points at, or a version by its number.

        Raises:
            StorageError: The model, alias or version is unknown.
        """
        uri = tracking_uri(self.storage)
        client = connect(uri)
        try:
            if version is None:
                stored = client.get_model_version_by_alias(name, alias)
            else:
                stored = client.get_model_version(name, str(version))
        except exceptions.MlflowException as error:
            wanted = f"with alias {alias!r}" if version is None else f"version {version}"
            names = [model.name for model in client.search_registered_models(max_results=1000)]
            if name in names:
                versions = client.search_model_versions(f"name = '{name}'", max_results=20)
                numbers = ", ".join(sorted(str(entry.version) for entry in versions))
                shown_name = repr(name)
                remedy = f"versions: {numbers}. Promote one, or give version="
            else:
                shown_name = unknown_names([name], names)
                remedy = "run the job that registers it"
            raise StorageError(
                f"no model {shown_name} {wanted} in {shown(uri)}: {remedy}"
            ) from error
        path = str(stored.source).removeprefix(f"{self.storage.root}/")
        return StoredModel(name, int(stored.version), path, stored.tags.get(_DIGEST_TAG, ""))


def _write(
    storage: Storage, path: str, write: Callable[[Path], None], manifest: dict[str, Any]
) -> str:
    """Fill a model's folder, and return the digest of its files."""
    with storage.new_dir(path) as folder:
        write(folder)
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2, default=str))
        return _digest(folder)


def _digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = file.relative_to(folder).as_posix()
        if name == "_COMPLETE":  # marks a complete upload to a remote root
            continue
        with file.open("rb") as content:
            part = hashlib.file_digest(content, "sha256").hexdigest()
        digest.update(f"{name}\n{part}\n".encode())
    return digest.hexdigest()
