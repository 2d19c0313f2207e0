"""What a step is told, as a digest: equal for equal values, in every process."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import types
from datetime import date, time, timedelta
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from pyarrow import fs

from raysys.errors import RaysysError
from raysys.workflow._code_digest import code_digest

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLAIN = (bool, int, float, complex, bytes, date, time, timedelta, PurePath, type(None))


class InputFiles(str):
    """The path or URI of a file or folder that a step reads: its content counts, not its name.

    Of a remote file size and time of the last change count, which cost no reading.

    Example:
        job.step(etl, InputFiles("ratings.csv"))
    """

    __slots__ = ()


def digest(*values: Any) -> str:
    """Digest of values: numbers, text, containers, arrays, Tables, settings models, functions.

    A function counts with its code (`code_digest`) and the values that it closes over.

    Raises:
        RaysysError: A value has no content that could be told from another's.
    """
    found = hashlib.blake2b(digest_size=16)
    for part in _parts(values):
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    """The content of a value as a sequence of byte strings, each container with its length."""
    yield type(value).__qualname__.encode()
    if isinstance(value, InputFiles):
        yield from _files(value)
    elif isinstance(value, str):
        yield value.encode()
    elif isinstance(value, enum.Enum):
        yield str(value.name).encode()
    elif isinstance(value, _PLAIN):
        yield repr(value).encode()
    elif isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        yield f"{array.dtype} {array.shape}".encode()
        if array.dtype.hasobject:
            yield from _parts(array.tolist())
        else:
            yield array.tobytes()
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for one in value:
            yield from _parts(one)
    elif isinstance(value, set | frozenset):
        yield from sorted(digest(one).encode() for one in value)
    elif isinstance(value, dict | types.MappingProxyType):
        yield str(len(value)).encode()
        for key, one in value.items():
            yield from _parts(key)
            yield from _parts(one)
    else:
        yield from _object(value)


def _object(value: Any) -> Iterator[bytes]:
    """The content of what has a class of its own."""
    if hasattr(value, "get_secret_value"):
        return  # a secret is in no record, and so in no key
    if isinstance(value, functools.partial):
        yield from _parts((value.func, value.args, value.keywords))
    elif isinstance(value, types.MethodType):
        yield from _parts((value.__func__, value.__self__))
    elif isinstance(value, types.FunctionType):
        yield code_digest(value).encode()
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        yield from _parts([value.__qualname__, *(one for one in cells if one is not value)])
    elif isinstance(value, types.BuiltinFunctionType | type):
        yield f"{value.__module__}.{value.__qualname__}".encode()
        if isinstance(value, type):
            yield _class_code(value)
    elif hasattr(value, "model_dump"):  # a pydantic model
        yield from _parts({name: getattr(value, name) for name in type(value).model_fields})
    elif dataclasses.is_dataclass(value):
        yield from _parts({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(getattr(value, "fingerprint", None), str):  # a Table, a Graph
        yield value.fingerprint.encode()
    elif isinstance(getattr(value, "root", None), str):  # a Storage: where, not what
        yield value.root.encode()
    else:
        raise RaysysError(
            f"a {type(value).__qualname__} has no content that is known: give numbers, text, "
            "arrays, settings models, Tables, functions, or the result of another step"
        )


def _class_code(cls: type) -> bytes:
    try:
        return code_digest(cls).encode()
    except (RaysysError, AttributeError):  # built in
        return b""


def _files(path: InputFiles) -> Iterator[bytes]:
    if "://" not in path:
        place = Path(path)
        files = [place] if place.is_file() else sorted(f for f in place.rglob("*") if f.is_file())
        if not files:
            raise RaysysError(f"{path}: no such file, or a folder without files")
        for file in files:
            name = file.relative_to(place).as_posix()
            with file.open("rb") as content:
                yield name.encode()
                yield hashlib.file_digest(content, "blake2b").digest()
        return
    filesystem, base = fs.FileSystem.from_uri(str(path))
    found = filesystem.get_file_info(base)
    listed = [found]
    if found.type == fs.FileType.Directory:
        listed = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
    elif found.type == fs.FileType.NotFound:
        raise RaysysError(f"{path}: no such file")
    for one in sorted(listed, key=lambda info: info.path):
        if one.is_file:
            yield f"{one.path.removeprefix(base)} {one.size} {one.mtime_ns}".encode()
