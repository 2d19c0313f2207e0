"""Files by path, folder, pattern or URI, on file systems of pyarrow or fsspec."""

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
from raysys.imports import lazy_import

if TYPE_CHECKING:
    from collections.abc import Sequence

fsspec = lazy_import("fsspec")

_WILD = re.compile(r"[*?\[]")
_QUERY = re.compile(r"\?\w+=[^*?\[]*$")
_GLOB_TOKEN = re.compile(r"\*\*/|\*\*|\[.[^\]]*\]|.", re.DOTALL)
_GLOB = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_COMPRESSED = {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}


@dataclass(frozen=True)
class File:
    """A file as a listing shows it.

    Attributes:
        base: Path or URI of the user, which selects the file system.
        path: Path on that file system.
        size: Size in bytes.
        modified: Time of the last change, as ISO text; empty if unknown.
        below: Index in `path` after the user's folder, or the fixed folders of a pattern.
    """

    base: str
    path: str
    size: int
    modified: str
    below: int

    @property
    def name(self) -> str:
        """Name in messages."""
        scheme, mark, _ = self.base.partition("://")
        return f"{scheme}://{self.path}" if mark else self.path

    def open(self) -> Any:
        """A seekable `pyarrow.NativeFile`."""
        return _filesystem(self.base)[0].open_input_file(self.path)

    def read_range(self, start: int, stop: int) -> bytes:
        """A range of bytes.

        Raises:
            DataError: The file cannot be read, or has become shorter.
        """
        try:
            with self.open() as stream:
                data = bytes(stream.read_at(max(0, stop - start), start))
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error}") from error
        if len(data) < stop - start:
            raise DataError(f"{self.name}: became shorter while being read. Read it again")
        return data

    @property
    def is_compressed(self) -> bool:
        """Whether the name ends as that of a compressed file, which cannot be split."""
        return self._suffix == "zip" or self._suffix in _COMPRESSED

    @property
    def _suffix(self) -> str:
        return self.path.rpartition(".")[2].lower()

    def content(self) -> bytes:
        """The decompressed content.

        Raises:
            DataError: The file cannot be read, or the compressed data is truncated.
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
                names = [
                    name
                    for name in archive.namelist()
                    if not (name.endswith("/") or name.startswith("__MACOSX"))
                ]
                if len(names) != 1:
                    raise DataError(f"{self.name}: {len(names)} files; give an archive of one file")
                return archive.read(names[0])
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(f"{self.name}: not a zip file, or truncated: {error}") from None
        except (NotImplementedError, RuntimeError) as error:  # an unknown method, a password
            raise DataError(f"{self.name}: cannot be unpacked: {error}") from None

    def keys(self) -> dict[str, str]:
        """Values of columns from folders named `column=value` (Hive's layout)."""
        pairs = [part.partition("=") for part in self.path[self.below :].split("/")[:-1]]
        return {unquote(name): unquote(value) for name, mark, value in pairs if mark and name}


def find(paths: str | Path | Sequence[str | Path]) -> list[File]:
    """Files of a path, a folder (all below it), a pattern (`*`, `?`, `**`) or a list of these.

    In folders and patterns, names that start with `.` or `_` are ignored, except for folders
    named `column=value`.

    Raises:
        DataError: No file matches.
    """
    if not isinstance(paths, (str, Path)):
        return [file for path in paths for file in find(path)]
    base = str(paths)
    filesystem, path = _filesystem(base)
    try:
        below, infos = _list(filesystem, path)
    except (OSError, ValueError) as error:
        raise DataError(f"{base}: cannot be listed: {error}") from error
    if not infos:
        kind = "no file matches" if _WILD.search(path) else "no such file, or an empty folder"
        raise DataError(f"{base}: {kind}. Give a path, a folder, a pattern or a URI")
    return [
        File(base, info.path, info.size or 0, info.mtime.isoformat() if info.mtime else "", below)
        for info in sorted(infos, key=lambda info: info.path)
    ]


@functools.lru_cache(64)
def _filesystem(base: str) -> tuple[Any, str]:
    """A file system, and the path or pattern on it."""
    if "://" not in base:
        return fs.LocalFileSystem(), str(Path(base).expanduser().absolute())
    query = _QUERY.search(base)  # such as ?endpoint_override=...
    location = base[: query.start()] if query else base
    wild = _WILD.search(location)
    head = location[: wild.start()].rpartition("/")[0] if wild else location
    uri = head + (query.group() if query else "")
    try:
        filesystem, path = fs.FileSystem.from_uri(uri.replace(" ", "%20"))
    except (OSError, ValueError) as error:
        try:
            under, path = fsspec.core.url_to_fs(uri)
        except (ImportError, OSError, ValueError) as second:
            raise DataError(f"{base}: cannot be opened: {error}; {second}") from error
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(under))
    return filesystem, path + location[len(head) :]


def _list(filesystem: Any, path: str) -> tuple[int, list[Any]]:
    """Index in the paths after the fixed folders, and the files."""
    info = filesystem.get_file_info(path)
    wild = _WILD.search(path)
    pattern = None
    if info.type == fs.FileType.File:  # its name may have the characters of a pattern
        return len(path), [info]
    if info.type == fs.FileType.Directory:
        folder = path.rstrip("/")
    elif wild:
        folder = path[: wild.start()].rpartition("/")[0]
        pattern = re.compile(_translated(path))
    else:
        return 0, []
    selector = fs.FileSelector(folder or "/", recursive=True, allow_not_found=True)
    files = [
        info
        for info in filesystem.get_file_info(selector)
        if info.is_file
        and not _hidden(info.path[len(folder) :])
        and (pattern is None or pattern.fullmatch(info.path))
    ]
    return len(folder), files


def _hidden(path: str) -> bool:
    *folders, name = path.split("/")
    return name[:1] in (".", "_") or any(
        folder[:1] in (".", "_") and "=" not in folder for folder in folders if folder
    )


def _translated(pattern: str) -> str:
    """A pattern of paths as a regular expression: `*` stays within a folder, `**` does not."""

    def translate(match: re.Match[str]) -> str:
        token = match.group()
        if len(token) == 1 or token[0] != "[":
            return _GLOB.get(token, re.escape(token))
        inside = token[1:-1].replace("\\", r"\\")
        return f"[{'^' + inside[1:] if inside[0] == '!' else inside}]"

    return _GLOB_TOKEN.sub(translate, pattern)
