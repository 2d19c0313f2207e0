"""Raw CSV with the types that it is to have, where a whole column of a part converts.

Reading text as text and casting it afterwards takes twice as long as Arrow's own conversion. So a
check asks for types, and what fails to convert stays text for it to look at.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from raysys.data.readers._column_types import FILE, MALFORMED, ROW, repeated, with_text_types
from raysys.data.readers._csv import CsvPart, content, decoded, has_records, is_utf8, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


_FAILED = re.compile(r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error")
_PIECE_BYTES = 1 << 20  # looked at first for columns that do not convert


class Typed(NamedTuple):
    """A part's rows.

    Attributes:
        block: The records' columns, each typed or text as a whole, with `_file` and `_row`.
        malformed: The lines that are no records, as a raw part has them.
        texts: Gives rows of `block` by their places as a raw part has them, as they are written.
    """

    block: pa.Table
    malformed: pa.Table
    texts: Callable[[np.ndarray], pa.Table]


def read_typed(part: CsvPart, types: Mapping[str, pa.DataType]) -> Typed | None:
    """A raw part's rows with typed columns; text as it is written is made where it is asked for.

    Args:
        part: A raw one.
        types: Wanted of columns; the others are text.

    Returns:
        The rows. None if lines may not be records (there are quotes or empty lines) or cannot be
        decoded.
    """
    text = content(part.file, part.start, part.stop, part.options)
    if b'"' in text or not has_records(text):
        return None
    if not is_utf8(part.options):
        try:
            text = decoded(text, part.options)
        except UnicodeDecodeError:
            return None
    ragged: list[tuple[int, str]] = []

    def keep(row: Any) -> str:
        ragged.append((int(row.number) - 1, row.text))
        return "skip"

    kinds = {name: types.get(name, pa.large_string()) for name in part.header}
    pieces = [text[: text.rfind(b"\n", 0, _PIECE_BYTES) + 1], text]  # most of it is known early
    while pieces:
        ragged.clear()
        schema = pa.schema(list(kinds.items()))
        try:
            table = parse(pieces[0], schema, part, part.header, keep) if pieces[0] else None
            pieces.pop(0)
        except pa.ArrowInvalid as error:
            failed = _FAILED.search(str(error))
            name = part.header[int(failed[1])] if failed else None
            if name is None or kinds[name] == pa.large_string():
                return None  # not UTF-8, and the like
            kinds[name] = pa.large_string()
    assert table is not None
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    ends = ends if text.endswith(b"\n") else np.append(ends, len(text))
    lines = len(table) + len(ragged)
    if lines != len(ends):
        return None
    out = np.array([row for row, _ in ragged], np.int64)
    rows = np.delete(np.arange(lines), out)
    written = with_text_types(pa.schema([(name, pa.null()) for name in part.header]))

    def raw(records: pa.Table, numbers: np.ndarray, malformed: pa.Array) -> pa.Table:
        made = records.append_column(FILE, repeated(part.file.name, len(numbers)))
        made = made.append_column(ROW, pa.array(numbers + part.first_row))
        return made.append_column(MALFORMED, malformed)

    def texts(places: np.ndarray) -> pa.Table:
        starts = np.concatenate([[0], ends[:-1]])
        records = b"".join(text[starts[row] : ends[row]] for row in rows[places])
        found = parse(records, written, part, part.header) if records else written.empty_table()
        return raw(found, rows[places], pa.nulls(len(places), pa.large_string()))

    nothing = pa.table([pa.nulls(len(out), field.type) for field in written], schema=written)
    said = pa.array([line for _, line in ragged], pa.large_string())
    block = table.append_column(FILE, repeated(part.file.name, len(table)))
    block = block.append_column(ROW, pa.array(rows + part.first_row))
    return Typed(block, raw(nothing, out, said), texts)


def raw_part(source: Any) -> CsvPart | None:
    """The source of a block, if it is a raw part of a CSV file."""
    return source if isinstance(source, CsvPart) and source.options.raw else None
