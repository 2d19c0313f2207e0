"""The MLflow server, or SQLite file under a local storage root, that records runs."""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from raysys.arguments import checked
from raysys.errors import StorageError, UnavailableError
from raysys.imports import lazy_import
from raysys.secrets import shown

if TYPE_CHECKING:
    from raysys.storage import Storage

mlflow = lazy_import("mlflow")

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
POINTER = "tracking.json"
_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class TrackingTarget:
    """Destination of a storage root's runs.

    Attributes:
        uri: URI of the MLflow server or database.
        parent: Id of the run that the folder belongs to; None without one.
        artifacts: Folder for the files of runs; None where the server has its own.
    """

    uri: str
    parent: str | None
    artifacts: str | None


def target_of(storage: Storage) -> TrackingTarget:
    """Destination of a storage root's runs.

    The folder of a run names the run and its server (`write_pointer`). For any other root the
    server is MLFLOW_TRACKING_URI, else a SQLite file under the root.

    Raises:
        StorageError: The root is remote and MLFLOW_TRACKING_URI is not set.
    """
    variable = os.environ.get(TRACKING_VARIABLE)
    if pointer := storage.read_bytes(POINTER):
        run = json.loads(pointer)
        uri = variable if variable and shown_uri(variable) == run["uri"] else run["uri"]
        return TrackingTarget(uri, run["run_id"], run["artifacts"])
    if not variable and not storage.is_local:
        raise StorageError(
            f"the storage root {storage.root} is remote and {TRACKING_VARIABLE} is not set: set it "
            "to an MLflow server"
        )
    uri = variable or f"{_SQLITE}{storage.uri('mlflow.db')}"
    is_server = urlsplit(uri).scheme in ("http", "https")
    return TrackingTarget(uri, None, None if is_server else storage.uri("mlflow"))


def write_pointer(folder: Storage, target: TrackingTarget, run_id: str) -> None:
    """Assign a folder to a run: runs opened with it as their storage are children of it."""
    run = {"run_id": run_id, "uri": shown_uri(target.uri), "artifacts": target.artifacts}
    folder.write_json(POINTER, run)


@checked
def tracking_uri(storage: Storage) -> str:
    """URI of the MLflow server or database of a storage root's runs.

    Raises:
        StorageError: The root is remote and MLFLOW_TRACKING_URI is not set.
    """
    return target_of(storage).uri


@functools.cache
def connect(uri: str) -> Any:
    """An `mlflow.MlflowClient`; the first of a process takes a second or two.

    It creates the tables of a new SQLite file, one process at a time.

    Raises:
        UnavailableError: The server or database does not answer.
    """
    try:
        client = mlflow.MlflowClient  # loads mlflow, which sets the levels of its loggers
        for library in ("mlflow", "alembic"):
            logging.getLogger(library).setLevel(logging.WARNING)
        with locked(uri):
            return client(_without_login(uri))
    except (mlflow.exceptions.MlflowException, ImportError, OSError) as error:
        raise unavailable(uri, error) from error


def unavailable(uri: str, error: Exception) -> UnavailableError:
    """The error for an MLflow server that does not answer."""
    return UnavailableError(
        f"MLflow at {shown_uri(uri)} does not answer ({shown(str(error))}): start the server, or "
        f"name another with {TRACKING_VARIABLE}"
    )


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Lock a SQLite file against other processes and threads; a server needs no lock.

    SQLite locks its own writes; this is for what must not happen twice: creating the tables, and
    opening a new run.
    """
    if not uri.startswith(_SQLITE):
        yield
        return
    path = Path(uri.removeprefix(_SQLITE).partition("?")[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def shown_uri(uri: str) -> str:
    """The URI with its password masked, for files and messages."""
    return shown(uri)


def _without_login(uri: str) -> str:
    """The URI of a server without user and password, which MLflow then finds in the environment.

    MLflow puts the URI of a server into the messages of its errors.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.password is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
