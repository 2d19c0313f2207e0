"""Digest of values: equal for equal content, in every process."""

import dataclasses
import enum
import functools
import hashlib
import sys
import types
from collections.abc import Iterable, Iterator
from datetime import date, time, timedelta
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from raysys.errors import RaysysError
from raysys.identity._code_digest import code_digest

_PLAIN = (bool, int, float, complex, bytes, date, time, timedelta, PurePath, type(None))


class InputFiles(str):
    """Path or URI of a file or folder that a step reads; counts by its content, not its name.

    A remote file counts by its size and the time of its last change, without reading it.

    Example:
        job.step(etl, InputFiles("ratings.csv"))
    """

    __slots__ = ()


def digest(*values: Any, strict: bool = True) -> str:
    """Digest of numbers, text, containers, arrays, Tables, settings models and functions.

    A function counts with its code (`code_digest`) and the values that it closes over, a method or
    callable object with the code of its class and its state.

    Args:
        values: Values whose content counts.
        strict: Refuse an object without known content; otherwise it counts by its type, its
            attributes, and its text if that shows no address.

    Returns:
        32 hex digits.

    Raises:
        RaysysError: A value's content is unknown, and `strict` is set.
    """
    return _ContentWalk(strict).digest(values)


class _ContentWalk:
    """The content of values as byte strings, each container with its length."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._open: list[Any] = []  # functions and objects that contain the current value

    def digest(self, value: Any) -> str:
        total = hashlib.blake2b(digest_size=16)
        for part in self._parts(value):
            total.update(len(part).to_bytes(8, "little") + part)
        return total.hexdigest()

    def _parts(self, value: Any) -> Iterator[bytes]:
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
                yield from self._parts(array.tolist())
            else:
                yield array.tobytes()
        elif isinstance(value, list | tuple):
            yield str(len(value)).encode()
            yield from self._each(value)
        elif isinstance(value, set | frozenset):
            yield from sorted(self.digest(item).encode() for item in value)
        elif isinstance(value, dict | types.MappingProxyType):
            yield str(len(value)).encode()
            for key, item in value.items():
                yield from self._each((key, item))
        elif any(value is container for container in self._open):
            yield b"recursion"
        else:
            self._open.append(value)
            yield from self._object(value)
            self._open.pop()

    def _each(self, values: Iterable[Any]) -> Iterator[bytes]:
        for value in values:
            yield from self._parts(value)

    def _object(self, value: Any) -> Iterator[bytes]:
        """The content of an object of a class of its own."""
        if hasattr(value, "get_secret_value"):
            return  # secrets are recorded nowhere, not even as digests
        if isinstance(value, functools.partial):
            yield from self._parts((value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            yield from self._parts(value.__func__)
            owner = value.__self__
            if isinstance(owner, type) or hasattr(owner, "fingerprint"):
                yield from self._parts(owner)
            else:
                yield from self._state(owner)
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.BuiltinFunctionType | type):
            yield f"{value.__module__}.{value.__qualname__}".encode()
            if isinstance(value, type):
                yield code_digest(value).encode()
        elif isinstance(value, types.ModuleType):
            yield value.__name__.encode()
        elif type(value).__module__.startswith("torch") and hasattr(value, "detach"):  # a tensor
            flat = value.detach().cpu().contiguous()
            yield f"{flat.dtype} {tuple(flat.shape)}".encode()
            yield flat.reshape(-1).view(sys.modules["torch"].uint8).numpy().tobytes()
        elif isinstance(value, pa.Table | pa.RecordBatch):
            yield _arrow(value)
        elif type(value).__module__.startswith("polars") and hasattr(value, "meta"):
            yield value.meta.serialize()
        elif hasattr(value, "__wrapped__"):  # a cached function
            yield from self._parts(value.__wrapped__)
        elif _is_code(value):
            yield from self._state(value)
        elif hasattr(value, "model_dump"):  # a pydantic model
            names = [*type(value).model_fields, *(value.model_extra or ())]
            yield from self._parts({name: getattr(value, name) for name in names})
        elif dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            yield from self._parts({name: getattr(value, name) for name in names})
        elif isinstance(fingerprint := getattr(value, "fingerprint", None), str):  # a Graph
            yield fingerprint.encode()
        elif callable(fingerprint):  # a Table
            yield fingerprint().encode()
        elif isinstance(getattr(value, "root", None), str):  # a Storage: its place, not its files
            yield value.root.encode()
        elif self._strict:
            raise _unknown(value)
        else:
            yield code_digest(type(value)).encode()
            yield from self._parts(getattr(value, "__dict__", None))
            if " at 0x" not in (text := str(value)) and "ObjectRef" not in type(value).__name__:
                yield text.encode()

    def _state(self, value: Any) -> Iterator[bytes]:
        """The code of an object's class, and what pickle keeps of the object."""
        yield code_digest(type(value)).encode()
        try:
            content = value.__reduce_ex__(4)[:3]
        except TypeError:
            if self._strict:
                raise _unknown(value) from None
            content = getattr(value, "__dict__", None)
        yield from self._parts(content)

    def _function(self, function: Any) -> Iterator[bytes]:
        yield code_digest(function).encode()
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        yield from self._parts([function.__qualname__, *cells])
        strict, self._strict = self._strict, False  # the source has them too, as expressions
        yield from self._parts([function.__defaults__, function.__kwdefaults__])
        self._strict = strict


def _is_code(value: Any) -> bool:
    """Whether a value is an object of a class with a `__call__` in Python."""
    is_callable = callable(value) and hasattr(type(value).__call__, "__code__")
    return is_callable and not hasattr(value, "fingerprint")


def _unknown(value: Any) -> RaysysError:
    return RaysysError(
        f"the content of a {type(value).__qualname__} is unknown: give numbers, text, arrays, "
        "settings models, Tables, functions, or the result of another step"
    )


def _arrow(rows: pa.Table | pa.RecordBatch) -> bytes:
    table = rows.combine_chunks() if isinstance(rows, pa.Table) else rows
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return hashlib.blake2b(sink.getvalue(), digest_size=16).digest()


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
    info = filesystem.get_file_info(base)
    infos = [info]
    if info.type == fs.FileType.Directory:
        infos = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
    elif info.type == fs.FileType.NotFound:
        raise RaysysError(f"{path}: no such file")
    for info in sorted(infos, key=lambda info: info.path):
        if info.is_file:
            yield f"{info.path.removeprefix(base)} {info.size} {info.mtime_ns}".encode()
