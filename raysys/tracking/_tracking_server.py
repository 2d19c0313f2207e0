"""The MLflow server, or SQLite file under a local storage root, that records runs."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from raysys.arguments import checked
from raysys.errors import RaysysError, StorageError, UnavailableError
from raysys.imports import lazy_import
from raysys.secrets import shown
from raysys.storage import read_record

if TYPE_CHECKING:
    from raysys.storage import Storage

mlflow = lazy_import("mlflow")

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
POINTER = "tracking.json"
_SQLITE = "sqlite:///"
_SQLITE_HEADER = 100  # bytes
_SQL = "\n[SQL"  # SQLAlchemy's errors go on with the statement
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_TIMEOUT_S = 10.0
_LOCKED_S = 10.0
_RESTORE = "restore it from a backup, or move it away to start a new one without the earlier runs"


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
    remedy = "remove it; runs below it are then recorded without their parent"
    if run := read_record(storage, POINTER, remedy=remedy):
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
        StorageError: The database's file is damaged.
    """
    try:
        client = mlflow.MlflowClient  # loads mlflow, which sets the levels of its loggers
        for library in ("mlflow", "alembic"):
            logging.getLogger(library).setLevel(logging.WARNING)
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        with locked(uri):
            _check(uri)
            return client(_without_login(uri))
    except (mlflow.exceptions.MlflowException, ImportError, OSError) as error:
        raise unavailable(uri, error) from error


def _check(uri: str) -> None:
    """Refuse at once what MLflow tries for two minutes: a damaged file, a silent database."""
    if uri.startswith(_SQLITE):
        path = _file_of(uri)
        if path.exists() and (fault := _fault(path)):
            raise StorageError(f"MLflow's database {path} is damaged ({fault}): {_RESTORE}")
        return
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") and parts.hostname:
        port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
        if port:
            socket.create_connection((parts.hostname, port), timeout=_TIMEOUT_S).close()


def _fault(path: Path) -> str | None:
    """What is wrong with a file of SQLite: no database, cut off, or its schema damaged."""
    with path.open("rb") as file:
        head = file.read(_SQLITE_HEADER)
    if not head:
        return None  # just created
    # What a killed writer left half done is in the journal, and undone when the file is opened.
    has_journal = any(path.with_name(f"{path.name}-{kind}").exists() for kind in ("journal", "wal"))
    if len(head) == _SQLITE_HEADER and head.startswith(b"SQLite format 3\0") and not has_journal:
        page = int.from_bytes(head[16:18], "big")  # "Database File Format", section 1.3
        pages, written, valid_for = (int.from_bytes(head[n : n + 4], "big") for n in (28, 24, 92))
        size, needed = path.stat().st_size, (65536 if page == 1 else page) * pages
        if written == valid_for and size < needed:
            return f"{size} of its {needed} bytes are there"
    try:
        with closing(sqlite3.connect(path)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        return None if "locked" in str(error) else str(error)
    return None


def require_unlocked(uri: str) -> None:
    """Refuse a SQLite file to which another process writes all the time.

    Raises:
        UnavailableError: It is locked for longer than any write takes.
    """
    if not uri.startswith(_SQLITE):
        return
    path = _file_of(uri)
    with closing(sqlite3.connect(path, timeout=_LOCKED_S, isolation_level=None)) as database:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise unavailable(uri, error) from error


def unavailable(uri: str, error: Exception) -> RaysysError:
    """The error for an MLflow server that does not answer, or a file that cannot be used."""
    reason = shown(str(error)).partition(_SQL)[0]
    if not uri.startswith(_SQLITE):
        return UnavailableError(
            f"MLflow at {shown_uri(uri)} does not answer ({reason}): start the server, or name "
            f"another with {TRACKING_VARIABLE}"
        )
    path = _file_of(uri)
    if "locked" in reason:
        return UnavailableError(
            f"MLflow's database {path} is locked by another process: end it (`fuser {path}` names "
            "it), or wait"
        )
    return StorageError(f"MLflow's database {path} cannot be used ({reason}): {_RESTORE}")


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Lock a SQLite file against other processes and threads; a server needs no lock.

    SQLite locks its own writes; this is for what must not happen twice: creating the tables, and
    opening a new run.
    """
    if not uri.startswith(_SQLITE):
        yield
        return
    path = _file_of(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _file_of(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE).partition("?")[0])


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
