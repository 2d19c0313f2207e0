"""Where runs are recorded: an MLflow server, or a SQLite file under a local storage root."""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from raysys.errors import StorageError, UnavailableError
from raysys.secrets import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raysys.storage import Storage

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
POINTER = "tracking.json"
_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Place:
    """Where the runs of a storage root are recorded, and below which run.

    Attributes:
        uri: Of the MLflow server or database.
        parent: MLflow's id of the run whose folder the storage is; None if it is no run's.
        artifacts: Folder for the files of runs; None where the server has its own.
    """

    uri: str
    parent: str | None
    artifacts: str | None


def place_of(storage: Storage) -> Place:
    """Find out where the runs of a storage root are recorded.

    The folder of a run names the run and its server (`write_pointer`). For any other root the
    server is MLFLOW_TRACKING_URI, else a SQLite file under the root.

    Raises:
        StorageError: The root is remote, where SQLite cannot live, and no server is named.
    """
    given = os.environ.get(TRACKING_VARIABLE)
    if pointer := storage.read_bytes(POINTER):
        named = json.loads(pointer)
        uri = given if given and shown_uri(given) == named["uri"] else named["uri"]
        return Place(uri, named["run_id"], named["artifacts"])
    if not given and not storage.is_local:
        raise StorageError(
            f"the storage root {storage.root} is remote and {TRACKING_VARIABLE} is not set: name "
            "an MLflow server with it"
        )
    uri = given or f"{_SQLITE}{storage.uri('mlflow.db')}"
    served = urlsplit(uri).scheme in ("http", "https")
    return Place(uri, None, None if served else storage.uri("mlflow"))


def write_pointer(folder: Storage, place: Place, run_id: str) -> None:
    """Make a folder that of a run: runs opened with it as their storage are its children."""
    named = {"run_id": run_id, "uri": shown_uri(place.uri), "artifacts": place.artifacts}
    folder.write_json(POINTER, named)


def tracking_uri(storage: Storage) -> str:
    """The MLflow server or database in which the runs of a storage root are recorded.

    Raises:
        StorageError: The root is remote, where SQLite cannot live, and no server is named.
    """
    return place_of(storage).uri


def connect(uri: str) -> Any:
    """An `mlflow.MlflowClient`; the first of a process takes a second or two.

    A new SQLite file gets its tables here; a lock lets one process at a time do that.

    Raises:
        UnavailableError: There is no such server or database.
    """
    from mlflow.exceptions import MlflowException

    try:
        return _connected(uri)
    except (MlflowException, ImportError, OSError) as error:
        raise unavailable(uri, error) from error


def unavailable(uri: str, error: Exception) -> UnavailableError:
    """What to say when MLflow does not answer."""
    return UnavailableError(
        f"MLflow at {shown_uri(uri)} does not answer ({shown(str(error))}): start the server, or "
        f"name another with {TRACKING_VARIABLE}"
    )


@functools.cache
def _connected(uri: str) -> Any:
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with locked(uri):
        return MlflowClient(_without_login(uri))


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Hold a SQLite file against other processes and threads; a server needs no lock.

    SQLite locks its own writes; this is for steps that must not be done twice: making the
    tables, and opening a run that is not there yet.
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
    """The URI without its password, which belongs in no file and no message."""
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
