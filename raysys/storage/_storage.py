"""Atomic writes of files and folders under one root URI."""

import contextlib
import functools
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from raysys.errors import StorageError
from raysys.imports import lazy_import
from raysys.secrets import shown
from raysys.storage import _signature
from raysys.storage._check import problem
from raysys.telemetry import metrics

fs = lazy_import("pyarrow.fs")  # the command line works without it

DEFAULT_ROOT = "~/.raysys"
# Written last into a folder on a file system without an atomic rename of folders.
_COMPLETE = "_COMPLETE"
# A day without a change: no process writes there any more.
_LEFTOVER_S = 86_400
# Ray unpacks the working directory of a submitted job below a folder of this name.
_JOB_FOLDER = "runtime_resources"


class Storage:
    """Artefacts under one root: a local folder, or any URI that pyarrow opens (s3, gs, hdfs).

    A reader sees a complete artefact or none. On a local file system a file or folder is
    written beside its final name, flushed and renamed. An object store cannot rename a
    folder: there a marker file, written last, makes a folder complete, and `fetch` refuses
    a folder without it.

    Example:
        >>> storage = Storage("/tmp/raysys-example")
        >>> with storage.new_dir("models/m1") as folder:
        ...     _ = (folder / "weights.bin").write_bytes(b"0123")
        >>> (storage.fetch("models/m1") / "weights.bin").read_bytes()
        b'0123'
    """

    def __init__(self, root: str | Path | None = None) -> None:
        """Open a root, a folder or URI; None takes RAYSYS_STORAGE, else `~/.raysys`."""
        uri = str(root or os.environ.get("RAYSYS_STORAGE") or DEFAULT_ROOT)
        self.is_local = "://" not in uri or uri.startswith("file://")
        if self.is_local:
            local = Path(uri.removeprefix("file://")).expanduser()
            if not local.is_absolute() and _JOB_FOLDER in str(Path.cwd()):
                raise StorageError(
                    f"the storage root {uri!r} is relative, and a submitted job runs in a "
                    "folder that Ray removes: give an absolute path or a URI"
                )
            uri = str(local.absolute())
        elif shown(uri) != uri:  # a root appears in records, messages and MLflow
            raise StorageError(
                f"the storage root {shown(uri)} contains a password: remove it, and give the "
                "machines a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (S3), "
                "GOOGLE_APPLICATION_CREDENTIALS (Google) in their environment"
            )
        self.root = uri.rstrip("/")

    def __repr__(self) -> str:
        return f"Storage({self.root!r})"

    def check(self, *, writable: bool = True, timeout_s: float = 15.0) -> "Storage":
        """Try to write, read and remove a small file, before work begins that needs the root.

        Args:
            writable: False only connects to the root and writes nothing.
            timeout_s: Time for a remote root to answer, in seconds.

        Returns:
            This storage.

        Raises:
            StorageError: The root is a file, is not writable, or does not answer.
        """
        if reason := problem(self, writable=writable, timeout_s=timeout_s):
            raise StorageError(
                f"the storage root {shown(self.root)} cannot be used: {reason}. Set RAYSYS_STORAGE "
                "to a folder that you can write to, or to a URI that answers"
            )
        return self

    def uri(self, path: str) -> str:
        """The full path or URI of an artefact.

        Raises:
            StorageError: The path is not below the root.
        """
        _require_below(path)
        base, mark, query = self.root.partition("?")
        return f"{base}/{path}{mark}{query}"

    def exists(self, path: str) -> bool:
        """Whether a complete file or folder exists at `path`."""
        if self.is_local:
            return Path(self.uri(path)).exists()
        filesystem, base = self._remote(path)
        kinds = filesystem.get_file_info([base, f"{base}/{_COMPLETE}"])
        return kinds[0].is_file or kinds[1].is_file

    @contextmanager
    def new_dir(self, path: str) -> Iterator[Path]:
        """Yield a local folder to fill; on leaving without an error it becomes `path`.

        Replaces an existing folder atomically; after an error the old one stays. (On an object
        store an interrupted upload leaves neither: write under a new name there.)
        """
        if self.is_local:
            with _failures_counted(), self.staged(path) as folder:
                yield Path(folder.root)
                _count(Path(folder.root))
            return
        with _failures_counted(), tempfile.TemporaryDirectory(prefix="raysys-") as local:
            yield Path(local)
            _count(Path(local))
            filesystem, base = self._remote(path)
            with self.staged(path):
                fs.copy_files(local, base, destination_filesystem=filesystem)

    @contextmanager
    def staged(self, path: str) -> Iterator["Storage"]:
        """Yield a root for tasks to write files under; without an error it becomes `path`.

        An existing folder is replaced, on an object store before the first file is written.
        """
        if not self.is_local:
            filesystem, base = self._remote(path)
            _clear(filesystem, base)
            yield Storage(self.uri(path))
            with filesystem.open_output_stream(f"{base}/{_COMPLETE}") as stream:
                stream.write(b"")
            return
        final = Path(self.uri(path))
        final.parent.mkdir(parents=True, exist_ok=True)
        staged = _beside(final, "partial")
        staged.mkdir()
        try:
            yield Storage(staged)
            for file in staged.rglob("*"):
                if file.name.startswith(".") and file.suffix == ".partial":
                    file.unlink()  # of a killed writer, whose task was retried
                elif file.is_file():
                    _flush(file)
            _replace_dir(staged, final)
            _flush(final.parent)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    @contextmanager
    def new_file(self, path: str) -> Iterator[Path]:
        """Yield a local path to write; on leaving without an error the file becomes `path`."""
        if self.is_local:
            final = Path(self.uri(path))
            with _partial_file(final) as staged, _failures_counted():
                yield staged
                _count(staged)
                _flush(staged)
                staged.replace(final)
                _flush(final.parent)
            return
        with _failures_counted(), tempfile.TemporaryDirectory(prefix="raysys-") as folder:
            local = Path(folder) / "file"
            yield local
            _count(local)
            filesystem, base = self._remote(path)
            fs.copy_files(str(local), base, destination_filesystem=filesystem)

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a file atomically, replacing an existing one."""
        if self.is_local:
            with self.new_file(path) as staged:
                staged.write_bytes(data)
            return
        filesystem, base = self._remote(path)
        with _failures_counted(), filesystem.open_output_stream(base) as stream:
            stream.write(data)
            metrics.STORAGE_WRITTEN_BYTES.inc(len(data))

    def write_signed(self, path: str, data: bytes) -> None:
        """Write a pickle with a signature of this cluster."""
        self.write_bytes(path, _signature.sign(data))

    def read_signed(self, path: str) -> bytes | None:
        """A pickle of `write_signed`, or None if it does not exist.

        Raises:
            StorageError: It is damaged, or was not written by this cluster.
        """
        signed = self.read_bytes(path)
        return None if signed is None else _signature.content(signed, shown(self.uri(path)))

    def create(self, path: str, data: bytes) -> None:
        """Write a file atomically, unless the path exists.

        Of two concurrent writers the local file system accepts one. An object store is checked
        before the write, so that there both may succeed.

        Raises:
            FileExistsError: The path exists.
        """
        if not self.is_local:
            if self.exists(path):
                raise FileExistsError(self.uri(path))
            self.write_bytes(path, data)
            return
        final = Path(self.uri(path))
        with _partial_file(final) as staged, _failures_counted():
            staged.write_bytes(data)
            _count(staged)
            _flush(staged)
            os.link(staged, final)  # like a rename, but never replaces
            try:
                _flush(final.parent)
            except OSError:
                final.unlink()  # the caller is told that nothing was written
                raise

    def write_json(self, path: str, value: Any) -> None:
        """Write `value` as indented JSON."""
        self.write_bytes(path, (json.dumps(value, indent=2, default=str) + "\n").encode())

    def read_bytes(self, path: str) -> bytes | None:
        """The content of a file, or None if it does not exist."""
        if not self.exists(path):
            return None
        try:
            if self.is_local:
                return Path(self.uri(path)).read_bytes()
            filesystem, base = self._remote(path)
            with filesystem.open_input_stream(base) as stream:
                return bytes(stream.read())
        except FileNotFoundError:  # removed since
            return None

    def sizes(self, path: str) -> dict[str, int]:
        """Bytes of the files in a folder, by name; empty if it does not exist."""
        if self.is_local:
            folder = Path(self.uri(path))
            entries = folder.iterdir() if folder.is_dir() else ()
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        filesystem, base = self._remote(path)
        infos = filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True))
        return {info.base_name: info.size for info in infos if info.is_file}

    def names(self, path: str) -> list[str]:
        """Sorted names of the files and folders in a folder; empty if it does not exist.

        On an object store a folder among them may be incomplete: check with `exists`.
        """
        if self.is_local:
            folder = Path(self.uri(path))
            entries = folder.iterdir() if folder.is_dir() else ()
            return sorted(entry.name for entry in entries if not entry.name.startswith("."))
        filesystem, base = self._remote(path)
        infos = filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.base_name != _COMPLETE)

    def remove(self, path: str) -> None:
        """Remove a file or folder; local readers that have it open can finish."""
        if self.is_local:
            final = Path(self.uri(path))
            if final.is_dir():
                shutil.rmtree(final.rename(_beside(final, "old")), ignore_errors=True)
            else:
                final.unlink(missing_ok=True)
            return
        filesystem, base = self._remote(path)
        if filesystem.get_file_info(base).is_file:
            filesystem.delete_file(base)
        else:
            _clear(filesystem, base)

    def fetch(self, path: str) -> Path:
        """A local path with the content of a complete artefact; a copy if the root is remote.

        Raises:
            StorageError: The artefact does not exist, or is incomplete.
        """
        if not self.exists(path):
            raise StorageError(
                f"no complete artefact at {self.uri(path)}: check the path, or rerun the job that "
                "writes it"
            )
        if self.is_local:
            return Path(self.uri(path))
        filesystem, base = self._remote(path)
        local = Path(tempfile.mkdtemp(prefix="raysys-")) / Path(path).name
        if not filesystem.get_file_info(base).is_file:
            local.mkdir()
        fs.copy_files(base, str(local), source_filesystem=filesystem)
        return local

    def _remote(self, path: str) -> tuple[Any, str]:
        # Only the root is a URI: it may end in a query, and a path may have any character.
        _require_below(path)
        filesystem, base = fs.FileSystem.from_uri(self.root)
        return filesystem, f"{base.rstrip('/')}/{path}"


def _require_below(path: str) -> None:
    if path.startswith("/") or ".." in path.split("/"):
        raise StorageError(
            f"the storage path {path!r} leaves the root: give a relative path without '..'"
        )


def _clear(filesystem: Any, base: str) -> None:
    """Delete the content of a remote folder, its marker first."""
    if filesystem.get_file_info(f"{base}/{_COMPLETE}").is_file:
        filesystem.delete_file(f"{base}/{_COMPLETE}")
    filesystem.delete_dir_contents(base, missing_dir_ok=True)


def _beside(final: Path, kind: Literal["partial", "old"]) -> Path:
    """A new hidden path in the same folder."""
    _collect(final.parent, int(time.time() // _LEFTOVER_S))
    return final.parent / f".{final.name}.{uuid.uuid4().hex}.{kind}"


@functools.lru_cache(4096)
def _collect(folder: Path, day: int) -> None:
    """Remove what killed writers left in a folder, once a day by the next writer there."""
    for leftover in folder.glob(".*"):
        if leftover.suffix not in (".partial", ".old"):
            continue
        with contextlib.suppress(OSError):  # another process removes it too
            changed = max(path.lstat().st_ctime for path in (leftover, *leftover.rglob("*")))
            if changed < time.time() - _LEFTOVER_S:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


@contextmanager
def _partial_file(final: Path) -> Iterator[Path]:
    """A path for a file until it has its final name; makes the folder."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a parent is a file
        raise NotADirectoryError(str(error)) from error
    staged = _beside(final, "partial")
    try:
        yield staged
    finally:
        staged.unlink(missing_ok=True)


@contextmanager
def _failures_counted() -> Iterator[None]:
    """Count failed writes."""
    try:
        yield
    except OSError:
        metrics.STORAGE_FAILURES.inc()
        raise


def _count(path: Path) -> None:
    """Count the bytes of a file, or of a folder's files."""
    files = path.rglob("*") if path.is_dir() else [path]
    metrics.STORAGE_WRITTEN_BYTES.inc(sum(file.stat().st_size for file in files if file.is_file()))


def _flush(path: Path) -> None:
    """Force a file or a folder's entries to disk, before a rename makes them visible."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_dir(staged: Path, final: Path) -> None:
    """Move `staged` to `final`; an old folder is first renamed and then removed."""
    if not final.exists():
        staged.rename(final)
        return
    aside = final.rename(_beside(final, "old"))
    try:
        staged.rename(final)
    except OSError:
        aside.rename(final)
        raise
    shutil.rmtree(aside, ignore_errors=True)
