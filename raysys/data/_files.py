"""Files by path, folder, pattern or URI, on whatever file system pyarrow or fsspec opens."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class File:
    """A file as a listing shows it.

    Attributes:
        base: What the user gave: it says which file system.
        path: The path on that file system.
        size: In bytes.
        modified: When it was last written, as ISO text; empty if the file system does not say.
    """

    base: str
    path: str
    size: int
    modified: str

    @property
    def name(self) -> str:
        """How messages name it."""
        scheme, mark, _ = self.base.partition("://")
        return f"{scheme}://{self.path}" if mark else self.path

    def open(self) -> Any:
        """A `pyarrow.NativeFile` that can seek."""
        return _filesystem(self.base)[0].open_input_file(self.path)

    def bytes(self, start: int, stop: int) -> bytes:
        """A range of its content."""
        with self.open() as stream:
            return bytes(stream.read_at(max(0, stop - start), start))

    def keys(self) -> dict[str, str]:
        """What folders named `column=value` say of its rows (Hive's layout)."""
        pairs = [part.partition("=") for part in self.path.split("/")[:-1]]
        return {name: _unquoted(value) for name, mark, value in pairs if mark and name}


def find(given: str | Path | Sequence[str | Path]) -> list[File]:
    """Files of a path, a folder (all below it), a pattern (`*`, `?`, `**`) or a list of these.

    Names that start with `.` or `_` are left out of folders and patterns.

    Raises:
        DataError: There is none.
    """
    if not isinstance(given, (str, Path)):
        return [file for one in given for file in find(one)]
    base = str(given)
    filesystem, path = _filesystem(base)
    try:
        found = sorted(_list(filesystem, path), key=lambda info: info.path)
    except (OSError, ValueError) as error:
        raise DataError(f"{base}: cannot be listed: {error}") from error
    if not found:
        kind = "no file matches" if _WILD.search(path) else "no such file, or an empty folder"
        raise DataError(f"{base}: {kind}. Give a path, a folder, a pattern or a URI")
    return [File(base, info.path, info.size or 0, _modified(info)) for info in found]


@functools.lru_cache(64)
def _filesystem(base: str) -> tuple[Any, str]:
    from pyarrow import fs

    if "://" not in base:
        return fs.LocalFileSystem(), str(Path(base).expanduser().absolute())
    wild = _WILD.search(base)
    head = base[: wild.start()] if wild else base
    try:
        filesystem, path = fs.FileSystem.from_uri(head)
    except (OSError, ValueError) as error:
        import fsspec

        try:
            under, path = fsspec.core.url_to_fs(head)
        except (ImportError, OSError, ValueError) as second:
            raise DataError(f"{base}: cannot be opened: {error}; {second}") from error
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(under))
    return filesystem, path + base[len(head) :]


def _list(filesystem: Any, path: str) -> Iterator[Any]:
    from pyarrow import fs

    wild = _WILD.search(path)
    if not wild:
        info = filesystem.get_file_info(path)
        if info.is_file:
            yield info
        if info.type != fs.FileType.Directory:
            return
        folder, pattern = path, None
    else:
        folder = path[: wild.start()].rpartition("/")[0]
        pattern = re.compile(_translated(path))
    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    for info in filesystem.get_file_info(selector):
        below = info.path[len(folder) :].split("/")
        hidden = any(part[:1] in (".", "_") for part in below if part)
        if info.is_file and not hidden and (not pattern or pattern.fullmatch(info.path)):
            yield info


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


def _unquoted(value: str) -> str:
    from urllib.parse import unquote

    return unquote(value)
