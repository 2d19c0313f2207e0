"""Raw CSV with the types that it is to have, where a whole column of a part converts.

Reading text as text and casting it afterwards takes twice as long as Arrow's own conversion. So a
check asks for types, and what fails to convert stays text for it to look at.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from raysys.data._columns import FILE, MALFORMED, ROW, repeated
from raysys.data._csv import content, decoded, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import pyarrow as pa

    from raysys.data._csv import CsvPart

_FAILED = re.compile(r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error")
_PIECE_BYTES = 1 << 20  # parsed at a time: a column that does not convert is known early


def read_typed(
    part: CsvPart, types: Mapping[str, pa.DataType]
) -> tuple[pa.Table, Callable[[np.ndarray], pa.Table]] | None:
    """A raw part's block with typed columns, and a function that gives rows of it as text.

    Args:
        part: A raw one.
        types: Wanted of columns; the others are text.

    Returns:
        The columns, each typed or text as a whole, with `_file`, `_row` and `_malformed`, rows of
        malformed lines last; and the rows by their places in it, as they are written. None if
        lines may not be records (there are quotes or empty lines) or cannot be decoded.
    """
    import numpy as np
    import pyarrow as pa

    data = content(part.file, part.start, part.stop, part.options)
    if b'"' in data or not data.strip(b"\r\n"):
        return None
    try:
        text = decoded(data, part.options)
    except UnicodeDecodeError:
        return None
    ragged: list[tuple[int, str]] = []

    def keep(row: Any) -> str:
        ragged.append((int(row.number) - 1, row.text))
        return "skip"

    kinds = {name: types.get(name, pa.large_string()) for name in part.header}
    while True:
        ragged.clear()
        schema = pa.schema(list(kinds.items()))
        try:
            table = parse(text, schema, part, part.header, keep, _PIECE_BYTES)
            break
        except pa.ArrowInvalid as error:
            failed = _FAILED.search(str(error))
            name = part.header[int(failed[1])] if failed else None
            if name is None or kinds[name] == pa.large_string():
                return None  # a record longer than a piece, and the like
            kinds[name] = pa.large_string()
    lines = len(table) + len(ragged)
    if lines != text.count(b"\n") + (not text.endswith(b"\n")):
        return None
    out = np.array([row for row, _ in ragged], np.int64)
    rows = np.arange(lines)
    rows = np.concatenate([np.delete(rows, out), out])
    bad = pa.table({MALFORMED: pa.array([said for _, said in ragged], pa.large_string())})
    block = pa.concat_tables([table, bad], promote_options="default")
    block = block.append_column(FILE, repeated(part.file.name, lines))
    block = block.append_column(ROW, pa.array(rows + part.first_row))

    def texts(places: np.ndarray) -> pa.Table:
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
        ends = ends if text.endswith(b"\n") else np.append(ends, len(text))
        starts = np.concatenate([[0], ends[:-1]])
        few = block.select([FILE, ROW, MALFORMED]).take(places)
        whole = rows[places[places < len(table)]]
        records = b"".join(text[starts[row] : ends[row]] for row in whole)
        written = pa.schema([(name, pa.large_string()) for name in part.header])
        found = parse(records, written, part, part.header) if records else written.empty_table()
        nothing = pa.nulls(len(few) - len(found), pa.large_string())
        for name in part.header:
            column = pa.chunked_array([*found[name].chunks, nothing], pa.large_string())
            few = few.append_column(name, column)
        return few.select([*part.header, FILE, ROW, MALFORMED])

    return block, texts


def raw_part(source: Any) -> CsvPart | None:
    """The source of a block, if it is a raw part of a CSV file."""
    from raysys.data._csv import CsvPart

    return source if isinstance(source, CsvPart) and source.options.raw else None
