"""Header of a CSV file, and types of its columns from a sample."""

from __future__ import annotations

import codecs
import csv
import io
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.readers._column_types import is_text, normal_type, require_unique, text_schema
from raysys.data.readers._csv import (
    CsvOptions,
    CsvPart,
    content,
    decoded,
    has_records,
    parse,
    parse_columns,
    splittable,
)
from raysys.data.readers._csv_errors import line_error, parse_error
from raysys.data.readers._exact_values import is_number, number_type
from raysys.data.readers._record_boundaries import count_lines, record_ends, scan
from raysys.errors import DataError

if TYPE_CHECKING:
    from raysys.data.readers._files import File

_HEAD_BYTES, _PIECES, _PIECE_BYTES = 4 << 20, 8, 256 << 10  # sample to infer types from
_STEP_BYTES = 64 << 20
_MARK = codecs.BOM_UTF8


def inspect(file: File, options: CsvOptions) -> CsvPart:
    """A file as one part, with the types of a sample of its values.

    The sample is the first 4 MiB and eight pieces of the remainder. A column without a value has
    the type null.

    Raises:
        DataError: The file has no header, or duplicate columns.
    """
    can_split = splittable(file, options)
    head = content(file, 0, min(_HEAD_BYTES, file.size) if can_split else -1, options)
    mark = len(_MARK) if head.startswith(_MARK) else 0
    ends = mark + record_ends(head[mark:], options.delimiter)[0]
    start = int(ends[0]) if len(ends) else len(head)
    names = _header(file, head[mark:start], options)
    stop = file.size if can_split else -1
    schema = pa.schema([pa.field(name, pa.null()) for name in names])
    line = 1 + count_lines(head[:start])
    part = CsvPart(file, tuple(names), schema, options, start, stop, line)
    if options.raw:
        return part
    samples = [(start, head[start:])]
    if len(head) < file.size and can_split:
        whole = head[start : int(ends[-1]) if len(ends) else start]
        samples = [(start, whole), *_pieces(file)]
    return _typed(part, samples)


def _header(file: File, record: bytes, options: CsvOptions) -> list[str]:
    if not record.strip():
        raise DataError(f"{file.name}: empty file or first line. Give a file with a header")
    try:
        text = decoded(record, options).decode()
        names = next(csv.reader(io.StringIO(text, newline=""), delimiter=options.delimiter))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{file.name}: line 1: invalid header: {error}. Give the file's encoding"
        ) from None
    require_unique(file, names)
    return names


def _typed(part: CsvPart, samples: list[tuple[int, bytes]]) -> CsvPart:
    """A part with the types of the values in samples, each with its place in the file."""
    texts = []
    for place, sample in samples:
        try:
            texts.append(decoded(sample, part.options))
        except UnicodeDecodeError as error:
            line = part.first_line + _lines(part.file, part.start, place)
            raise line_error(replace(part, first_line=line), sample, error) from None
    text = b"".join(texts)
    if not has_records(text):
        return part
    try:
        values = parse(text, part, handler=_skip)
    except pa.ArrowInvalid as error:
        raise parse_error(part, text, part.header, str(error)) from None
    types = {field.name: field.type for field in values.schema}
    types |= _types_without_empty(text, part, values)
    if numbers := [name for name, kind in types.items() if is_number(kind)]:
        texts = parse_columns(text, part, numbers, text_schema(numbers), _skip, quoted_nulls=True)
        types |= {name: number_type(types[name], texts[name]) for name in numbers}
    fields = [
        (n, kind if pa.types.is_null(kind) else normal_type(kind)) for n, kind in types.items()
    ]
    return replace(part, columns=pa.schema(fields))


def _types_without_empty(text: bytes, part: CsvPart, values: pa.Table) -> dict[str, pa.DataType]:
    """Types of columns that are text only because empty values are quoted."""
    if b'"' not in text:
        return {}
    texts, missing = [f.name for f in values.schema if is_text(f.type)], part.options.null_values
    values_of_none = pa.array(missing, pa.string())
    texts = [n for n in texts if pc.any(pc.is_in(values[n], value_set=values_of_none)).as_py()]
    if not texts:
        return {}
    types = parse_columns(text, part, texts, handler=_skip, quoted_nulls=True).schema
    return {f.name: f.type for f in types if not (is_text(f.type) or pa.types.is_null(f.type))}


def _skip(row: object) -> str:
    return "skip"


def _lines(file: File, start: int, stop: int) -> int:
    """Number of line ends between two places of a file."""
    places = range(start, stop, _STEP_BYTES)
    return sum(scan(file, n, min(n + _STEP_BYTES, stop), None).lines for n in places)


def _pieces(file: File) -> list[tuple[int, bytes]]:
    """Lines from places all over a file; none if a line end may be within a value."""
    step = max(1, (file.size - _HEAD_BYTES) // _PIECES)
    starts = [_HEAD_BYTES + number * step for number in range(_PIECES)]
    pieces = [file.read_range(s, min(s + _PIECE_BYTES, file.size)) for s in starts if s < file.size]
    firsts = [data.find(b"\n") + 1 for data in pieces]
    lines = [d[first : d.rfind(b"\n") + 1] for d, first in zip(pieces, firsts, strict=True)]
    if any(b'"' in data for data in lines):
        return []
    return [(s + n, data) for s, n, data in zip(starts, firsts, lines, strict=False)]
