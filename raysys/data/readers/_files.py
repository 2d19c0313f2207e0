"""Files by path, folder, pattern or URI, on whatever file system pyarrow or fsspec opens."""

from __future__ import annotations

import functools
import io
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

_WILD = re.compile(r"[*?\[]")
_QUERY = re.compile(r"\?\w+=[^*?\[]*$")


_COMPRESSED = {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}


@dataclass(frozen=True)
class File:
    """A file as a listing shows it.

    Attributes:
        base: What the user gave: it says which file system.
        path: The path on that file system.
        size: In bytes.
        modified: When it was last written, as ISO text; empty if the file system does not say.
        below: Where in `path` the part begins that the user's folder or pattern left open.
    """

    base: str
    path: str
    size: int
    modified: str
    below: int

    @property
    def name(self) -> str:
        """How messages name it."""
        scheme, mark, _ = self.base.partition("://")
        return f"{scheme}://{self.path}" if mark else self.path

    def open(self) -> Any:
        """A `pyarrow.NativeFile` that can seek."""
        return _filesystem(self.base)[0].open_input_file(self.path)

    def read_range(self, start: int, stop: int) -> bytes:
        """A range of its bytes.

        Raises:
            DataError: It cannot be read, or is shorter than it was.
        """
        try:
            with self.open() as stream:
                data = bytes(stream.read_at(max(0, stop - start), start))
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error}") from error
        if len(data) < stop - start:
            raise DataError(f"{self.name}: became shorter while it was read. Read it again")
        return data

    @property
    def is_compressed(self) -> bool:
        """Whether its name says so: then it is read from the start on only."""
        return self._suffix == "zip" or self._suffix in _COMPRESSED

    @property
    def _suffix(self) -> str:
        return self.path.rpartition(".")[2].lower()

    def content(self) -> bytes:
        """All of it, without compression.

        Raises:
            DataError: It cannot be read, or the compressed data is truncated.
        """
        if self._suffix == "zip":
            return self._unzipped()
        if self._suffix not in _COMPRESSED:
            return self.read_range(0, self.size)
        try:
            kind = _COMPRESSED[self._suffix]
            with self.open() as file, pa.CompressedInputStream(file, kind) as stream:
                return bytes(stream.read())
        except OSError as error:
            raise DataError(f"{self.name}: cannot be decompressed: {error}") from error

    def _unzipped(self) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(self.read_range(0, self.size))) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                names = [name for name in names if not name.startswith("__MACOSX")]
                if len(names) != 1:
                    raise DataError(
                        f"{self.name}: holds {len(names)} files; give one with a single one"
                    )
                return archive.read(names[0])
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(f"{self.name}: is no zip file, or a truncated one: {error}") from None
        except (NotImplementedError, RuntimeError) as error:  # an unknown method, a password
            raise DataError(f"{self.name}: cannot be unpacked: {error}") from None

    def keys(self) -> dict[str, str]:
        """What folders named `column=value` say of its rows (Hive's layout)."""
        pairs = [part.partition("=") for part in self.path[self.below :].split("/")[:-1]]
        return {unquote(name): unquote(value) for name, mark, value in pairs if mark and name}


def find(given: str | Path | Sequence[str | Path]) -> list[File]:
    """Files of a path, a folder (all below it), a pattern (`*`, `?`, `**`) or a list of these.

    Names that start with `.` or `_` are left out of folders and patterns, but not folders named
    `column=value`.

    Raises:
        DataError: There is none.
    """
    if not isinstance(given, (str, Path)):
        return [file for one in given for file in find(one)]
    base = str(given)
    filesystem, path = _filesystem(base)
    try:
        below, found = _list(filesystem, path)
    except (OSError, ValueError) as error:
        raise DataError(f"{base}: cannot be listed: {error}") from error
    if not found:
        kind = "no file matches" if _WILD.search(path) else "no such file, or an empty folder"
        raise DataError(f"{base}: {kind}. Give a path, a folder, a pattern or a URI")
    found.sort(key=lambda info: info.path)
    return [File(base, info.path, info.size or 0, _modified(info), below) for info in found]


@functools.lru_cache(64)
def _filesystem(base: str) -> tuple[Any, str]:
    """A file system, and the path or pattern there."""
    if "://" not in base:
        return fs.LocalFileSystem(), str(Path(base).expanduser().absolute())
    query = _QUERY.search(base)  # such as ?endpoint_override=...
    said = base[: query.start()] if query else base
    wild = _WILD.search(said)
    head = said[: wild.start()].rpartition("/")[0] if wild else said
    uri = head + (query.group() if query else "")
    try:
        filesystem, path = fs.FileSystem.from_uri(uri.replace(" ", "%20"))
    except (OSError, ValueError) as error:
        import fsspec

        try:
            under, path = fsspec.core.url_to_fs(uri)
        except (ImportError, OSError, ValueError) as second:
            raise DataError(f"{base}: cannot be opened: {error}; {second}") from error
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(under))
    return filesystem, path + said[len(head) :]


def _list(filesystem: Any, path: str) -> tuple[int, list[Any]]:
    """Where the open part of the paths begins, and the files."""
    info = filesystem.get_file_info(path)
    wild = _WILD.search(path)
    pattern = None
    if info.type == fs.FileType.File:  # whatever characters its name has
        return len(path), [info]
    if info.type == fs.FileType.Directory:
        folder = path.rstrip("/")
    elif wild:
        folder = path[: wild.start()].rpartition("/")[0]
        pattern = re.compile(_translated(path))
    else:
        return 0, []
    selector = fs.FileSelector(folder or "/", recursive=True, allow_not_found=True)
    found = [
        info
        for info in filesystem.get_file_info(selector)
        if info.is_file
        and not _hidden(info.path[len(folder) :])
        and (pattern is None or pattern.fullmatch(info.path))
    ]
    return len(folder), found


def _hidden(path: str) -> bool:
    *folders, name = path.split("/")
    return name[:1] in (".", "_") or any(
        folder[:1] in (".", "_") and "=" not in folder for folder in folders if folder
    )


def _translated(pattern: str) -> str:
    """A pattern of paths as a regular expression: `*` stays within a folder, `**` does not."""
    made, place = "", 0
    while place < len(pattern):
        if pattern.startswith("**/", place):
            made, place = made + "(?:.*/)?", place + 3
        elif pattern.startswith("**", place):
            made, place = made + ".*", place + 2
        elif pattern[place] == "[" and (end := pattern.find("]", place + 2)) > 0:
            inside = pattern[place + 1 : end].replace("\\", r"\\")
            made += f"[{'^' + inside[1:] if inside[0] == '!' else inside}]"
            place = end + 1
        else:
            one = pattern[place]
            made += {"*": "[^/]*", "?": "[^/]"}.get(one, re.escape(one))
            place += 1
    return made


def _modified(info: Any) -> str:
    return info.mtime.isoformat() if info.mtime else ""
