"""Raw CSV with typed columns, where all values of a part's column convert.

Reading text and casting it afterwards takes twice as long as Arrow's own conversion. So validation
asks for types, and columns that fail to convert stay text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from raysys.data.readers._column_types import FILE, LINE, MALFORMED, repeated, text_schema
from raysys.data.readers._csv import (
    CsvPart,
    content,
    decoded,
    has_records,
    is_utf8,
    parse,
    parse_leniently,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_FAILED = re.compile(r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error")
_PIECE_BYTES = 1 << 19  # converted first, to find columns that do not convert


class TypedRows(NamedTuple):
    """Rows of a part.

    Attributes:
        block: Columns of the records, each either typed or text, with `_file` and `_line`.
        malformed: Malformed lines, with the columns of a raw part.
        texts: Function of row numbers of `block` to rows as written, with the columns of a raw
            part.
    """

    block: pa.Table
    malformed: pa.Table
    texts: Callable[[np.ndarray], pa.Table]


def read_typed(part: CsvPart, types: Mapping[str, pa.DataType]) -> TypedRows | None:
    """Rows of a raw part with columns of these types, all other columns as text.

    None if lines and records may differ (the text has quotes or empty lines), or if the text
    cannot be decoded.
    """
    text = content(part.file, part.start, part.stop, part.options)
    if b'"' in text or not has_records(text):
        return None
    if not is_utf8(part.options):
        try:
            text = decoded(text, part.options)
        except UnicodeDecodeError:
            return None
    kinds = {name: types.get(name, pa.large_string()) for name in part.header}
    pieces = [text[: text.rfind(b"\n", 0, _PIECE_BYTES) + 1], text]  # most failures are early
    while pieces:
        try:
            if pieces[0]:
                table, ragged = parse_leniently(pieces[0], part, pa.schema(list(kinds.items())))
            pieces.pop(0)
        except pa.ArrowInvalid as error:
            failed = _FAILED.search(str(error))
            name = part.header[int(failed[1])] if failed else None
            if name is None or kinds[name] == pa.large_string():
                return None  # such as text that is not UTF-8
            kinds[name] = pa.large_string()
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    ends = ends if text.endswith(b"\n") else np.append(ends, len(text))
    lines = len(table) + len(ragged)
    if lines != len(ends):
        return None
    out = np.array([int(row.number) - 1 for row in ragged], np.int64)
    rows = np.delete(np.arange(lines), out)
    types_as_written = text_schema(part.header)

    def with_origin(records: pa.Table, numbers: np.ndarray) -> pa.Table:
        records = records.append_column(FILE, repeated(part.file.name, len(numbers)))
        return records.append_column(LINE, pa.array(numbers + part.first_line))

    def texts(places: np.ndarray) -> pa.Table:
        starts = np.concatenate([[0], ends[:-1]])
        records = b"".join(text[starts[row] : ends[row]] for row in rows[places])
        written = types_as_written.empty_table()
        if records:
            written = parse(records, part, types=types_as_written)
        no_lines = pa.nulls(len(places), pa.large_string())
        return with_origin(written, rows[places]).append_column(MALFORMED, no_lines)

    columns = [pa.nulls(len(out), kind) for kind in types_as_written.types]
    malformed = with_origin(pa.table(columns, schema=types_as_written), out)
    malformed = malformed.append_column(
        MALFORMED, pa.array([row.text for row in ragged], pa.large_string())
    )
    return TypedRows(with_origin(table, rows), malformed, texts)


def raw_part(source: Any) -> CsvPart | None:
    """The source of a block if it is a raw part of a CSV file."""
    return source if isinstance(source, CsvPart) and source.options.raw else None
