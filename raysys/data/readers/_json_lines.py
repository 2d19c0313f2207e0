"""JSON lines: columns of a file, and reading of a part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.json as pj

from raysys.data.readers._column_types import FormatPart
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import polars as pl

    from raysys.data.readers._files import File

_SAMPLE_BYTES = 4 << 20


@dataclass(frozen=True)
class JsonPart(FormatPart):
    """Lines of a file, each an object: bytes `start` to `stop`, -1 for a compressed file."""

    header: tuple[str, ...]
    start: int
    stop: int

    def read(
        self, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None
    ) -> pa.Table:
        """Parse the lines.

        Raises:
            DataError: A line is not an object, or a value has another type; not if `raw`.
        """
        data = self.file.content() if self.stop < 0 else self.file.read_range(self.start, self.stop)
        own = pa.schema([f for f in self.columns if f.name in self.header])
        malformed: list[tuple[int, str]] = []
        try:
            table = _parse_json(data, own)
        except pa.ArrowInvalid:
            data, malformed = _without_bad_lines(data, own)
            if not self.raw:
                row, text = malformed[0]
                raise DataError(
                    f"{self.file.name}: line {self._line(row)}: {text[:80]!r} does not fit the "
                    f"columns {', '.join(f'{f.name}: {f.type}' for f in [*own][:20])}. Repair it, "
                    "or read with raw=True and validate: such lines then go to quarantine"
                ) from None
            table = _parse_json(data, own)
        return self.finish(table, columns, malformed)

    def _line(self, row: int) -> int:
        """Line number, from 1, of a row of the part."""
        data = self.file.content() if self.stop < 0 else self.file.read_range(0, self.stop)
        before = data[: self.start].count(b"\n")
        lines = data[self.start :].split(b"\n")
        return before + [n for n, line in enumerate(lines, 1) if line.strip()][row]


def inspect_json(file: File, raw: bool) -> JsonPart:
    """A file of JSON lines as one part, with the columns of its first 4 MiB."""
    stop = -1 if file.is_compressed else file.size
    data = file.content() if stop < 0 else file.read_range(0, min(_SAMPLE_BYTES, stop))
    if len(data) < stop:
        data = data[: data.rfind(b"\n") + 1] or file.read_range(0, stop)
    if not data.strip():
        raise DataError(f"{file.name}: empty file. Give a file with one JSON object per line")

    def columns(lines: bytes) -> pa.Schema:
        options = pj.ReadOptions(use_threads=False, block_size=len(lines) + 1)
        return pj.read_json(pa.BufferReader(lines), options).schema

    try:
        schema = columns(data)
    except pa.ArrowInvalid as error:
        schema = _schema_by_line(file, data, columns, str(error), raw)
    return JsonPart(file, schema, raw, tuple(schema.names), 0, stop)


def _schema_by_line(
    file: File, data: bytes, columns: Callable[[bytes], pa.Schema], message: str, raw: bool
) -> pa.Schema:
    """The common schema of the lines that are JSON objects, if `raw` allows malformed ones."""
    schema = pa.schema([])
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            if line.strip():
                fields = columns(line)
                schema = pa.unify_schemas([schema, fields], promote_options="permissive")
        except pa.ArrowException as error:
            if not raw:
                raise DataError(
                    f"{file.name}: line {number}: {error}: {line[:80]!r}. Give one JSON object "
                    "per line, or read with raw=True and validate: malformed lines then go to "
                    "quarantine"
                ) from None
    if raw and schema.names:
        return schema
    raise DataError(f"{file.name}: cannot be read as JSON lines: {message}")


def _parse_json(data: bytes, schema: pa.Schema) -> pa.Table:
    if not data.strip():
        return schema.empty_table()
    types = pa.schema([pa.field(field.name, _readable(field.type)) for field in schema])
    return pj.read_json(
        pa.BufferReader(data),
        pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
        pj.ParseOptions(explicit_schema=types, unexpected_field_behavior="error"),
    )


def _readable(kind: pa.DataType) -> pa.DataType:
    """A type of Arrow's JSON reader, which does not support large lists."""
    if pa.types.is_large_list(kind):
        return pa.list_(_readable(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _readable(f.type)) for f in kind])
    return kind


def _without_bad_lines(data: bytes, schema: pa.Schema) -> tuple[bytes, list[tuple[int, str]]]:
    """Lines that parse, and malformed lines with their row numbers, by bisection."""
    lines = [line for line in data.split(b"\n") if line.strip()]
    bad: list[int] = []

    def bisect(first: int, last: int) -> None:
        try:
            _parse_json(b"\n".join(lines[first:last]), schema)
        except pa.ArrowInvalid:
            if last - first == 1:
                bad.append(first)
                return
            middle = (first + last) // 2
            bisect(first, middle)
            bisect(middle, last)

    bisect(0, len(lines))
    out = set(bad)
    good = b"\n".join(line for row, line in enumerate(lines) if row not in out)
    return good, [(row, lines[row].decode("utf-8", "backslashreplace")) for row in bad]
