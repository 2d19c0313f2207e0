"""JSON lines: columns of a file, and reading of a part."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from raysys.data.readers._column_types import LINE, FormatPart, in_order, is_text
from raysys.data.readers._exact_values import loses_digits, may_lose_digits
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import polars as pl

    from raysys.data.readers._files import File

_SAMPLE_BYTES = 4 << 20
_LONG = re.compile(rb"[0-9]{16}")
_TEXT, _DECODER = re.compile(r"\S"), json.JSONDecoder()
_TIMES = (
    pa.date32(), pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("ns"),
    pa.timestamp("ns", "UTC"),
)  # fmt: skip


@dataclass(frozen=True)
class JsonPart(FormatPart):
    """Lines of a file, each an object: bytes `start` to `stop`, -1 for a compressed file."""

    place: ClassVar[str] = LINE
    header: tuple[str, ...]
    start: int
    stop: int
    first_line: int = 1

    def read(
        self, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None
    ) -> pa.Table:
        """Parse the lines.

        Raises:
            DataError: A line is not an object, or a value has another type; not if `raw`.
        """
        data = self.file.content() if self.stop < 0 else self.file.read_range(self.start, self.stop)
        own = pa.schema([f for f in self.columns if f.name in self.header])
        if not self.raw:
            return in_order(self._parsed(data, own)[0], self.schema, columns, self.file)
        lines = _filled_lines(data, self.first_line)
        table, good, bad = self._parsed(data, own)
        malformed = [(int(lines[number]), text) for number, text in bad]
        lines = np.delete(lines, [number for number, _ in bad])
        if len(lines) != len(table):
            lines = lines[_lines_of_objects(good)]
        return self.finish(table, columns, lines, malformed)

    def _parsed(self, data: bytes, own: pa.Schema) -> tuple[pa.Table, bytes, list[tuple[int, str]]]:
        """Rows, their lines, and malformed lines with their numbers among filled ones."""
        try:
            return _parse_json(data, own), data, []
        except pa.ArrowInvalid:
            good, bad = _without_bad_lines(data, own)
        if not self.raw:
            number, text = bad[0]
            raise DataError(
                f"{self.file.name}: line {_filled_lines(data, self.first_line)[number]}: "
                f"{text[:80]!r} does not fit the columns "
                f"{', '.join(f'{f.name}: {f.type}' for f in [*own][:20])}. Repair it, or read with "
                "raw=True and validate: such lines then go to quarantine"
            )
        return _parse_json(good, own), good, bad


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
    schema = _exact_schema(file, data, schema, raw)
    return JsonPart(file, schema, raw, tuple(schema.names), 0, stop)


def _exact_schema(file: File, data: bytes, schema: pa.Schema, raw: bool) -> pa.Schema:
    """Types that keep the times and integers of a sample as written, where Arrow's do not."""
    try:
        table = _arrow_json(data, schema)
    except pa.ArrowInvalid:
        data, _ = _without_bad_lines(data, schema, _arrow_json)
        table = _arrow_json(data, schema)
    kinds = {f.name: _with_times(f.type, table[f.name]) for f in schema}
    for name in [name for name in schema.names if may_lose_digits(table[name])]:
        wider = _with_uint64(kinds[name])
        try:
            _arrow_json(data, pa.schema([(name, wider)]), "ignore")
            kinds[name] = wider
        except pa.ArrowInvalid:
            if not raw and (number := _inexact_number(data, [name])):
                raise DataError(
                    f"{file.name}: {name}: {number} has more digits than the other numbers of its "
                    "column allow. Write the column as text, in quotes"
                ) from None
    return pa.schema(list(kinds.items()))


def _with_times(kind: pa.DataType, column: pa.ChunkedArray) -> pa.DataType:
    """A type with the types of times where all texts are times."""
    if pa.types.is_list(kind):
        return pa.list_(_with_times(kind.value_type, pc.list_flatten(column)))
    if pa.types.is_struct(kind):
        fields = [(f.name, _with_times(f.type, pc.struct_field(column, f.name))) for f in kind]
        return pa.struct(fields)
    texts = column.drop_null()
    if not is_text(texts.type) or not len(texts):
        return kind
    for time in _TIMES:
        try:
            texts.cast(time)
            return time
        except pa.ArrowInvalid:
            continue
    return pa.large_string()


def _with_uint64(kind: pa.DataType) -> pa.DataType:
    """A type with uint64 in place of float64."""
    if pa.types.is_list(kind):
        return pa.list_(_with_uint64(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(f.name, _with_uint64(f.type)) for f in kind])
    return pa.uint64() if pa.types.is_float64(kind) else kind


def _schema_by_line(
    file: File, data: bytes, columns: Callable[[bytes], pa.Schema], message: str, raw: bool
) -> pa.Schema:
    """The common schema of the lines that are JSON objects, if `raw` allows malformed ones."""
    schema = pa.schema([])
    for number, line in enumerate(data.splitlines(), 1):
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
    """Lines as the columns of a schema.

    Raises:
        pa.ArrowInvalid: A value has another type, or is an integer that its column of floats does
            not keep.
    """
    if not data.strip():
        return schema.empty_table()
    table = _arrow_json(data, schema)
    large = [name for name in schema.names if may_lose_digits(table[name])]
    if large and (number := _inexact_number(data, large)):
        raise pa.ArrowInvalid(f"{number} has more digits than float64")
    return table.cast(schema)


def _arrow_json(data: bytes, schema: pa.Schema, other_fields: str = "error") -> pa.Table:
    types = pa.schema([pa.field(field.name, _readable(field.type)) for field in schema])
    return pj.read_json(
        pa.BufferReader(data),
        pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
        pj.ParseOptions(explicit_schema=types, unexpected_field_behavior=other_fields),
    )


def _inexact_number(data: bytes, names: Sequence[str]) -> str | None:
    """The first integer of some columns, nested ones too, that float64 does not keep."""

    def inexact(value: Any) -> Iterator[str]:
        if isinstance(value, _Integer):
            if loses_digits(value):
                yield value
        elif isinstance(value, (list, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                yield from inexact(item)

    for line in data.split(b"\n"):
        if _LONG.search(line):
            record = json.loads(line, parse_int=_Integer)
            if number := next(inexact([record.get(name) for name in names]), None):
                return number
    return None


class _Integer(str):
    """An integer as written."""


def _readable(kind: pa.DataType) -> pa.DataType:
    """A type of Arrow's JSON reader.

    It has no large lists, and drops the offset of a time: times are read as text, of which a cast
    requires an offset if the type has a time zone, and no offset otherwise.
    """
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_readable(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _readable(f.type)) for f in kind])
    return pa.string() if pa.types.is_temporal(kind) else kind


def _without_bad_lines(
    data: bytes,
    schema: pa.Schema,
    parse: Callable[[bytes, pa.Schema], pa.Table] = _parse_json,
) -> tuple[bytes, list[tuple[int, str]]]:
    """Lines that parse, and malformed lines with their numbers among filled ones, by bisection."""
    lines = [line for line in data.splitlines() if line.strip()]
    bad: list[int] = []

    def bisect(first: int, last: int) -> None:
        try:
            parse(b"\n".join(lines[first:last]), schema)
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


def _filled_lines(data: bytes, first: int) -> np.ndarray:
    """Numbers of the lines that are not blank."""
    return first + np.flatnonzero([bool(line.strip()) for line in data.splitlines()])


def _lines_of_objects(data: bytes) -> list[int]:
    """Numbers among filled lines where objects start, if a line has several or a part of one."""
    filled = b"\n".join(line for line in data.splitlines() if line.strip())
    text, place, line, lines = filled.decode("utf-8-sig"), 0, 0, []
    while begin := _TEXT.search(text, place):
        line += text.count("\n", place, begin.start())
        lines.append(line)
        _, place = _DECODER.raw_decode(text, begin.start())
        line += text.count("\n", begin.start(), place)
    return lines
