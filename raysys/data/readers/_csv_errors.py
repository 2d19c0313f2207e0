"""What is wrong with a piece of CSV, and in which line: found by reading it once more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysys.data.readers._csv import CsvPart, content, parse, splittable
from raysys.data.readers._record_boundaries import record_ends
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

_STEP_BYTES = 64 << 20


def line_error(part: CsvPart, data: bytes, error: UnicodeDecodeError) -> DataError:
    """A line is not of the encoding."""
    line = _lines_before(part) + data.count(b"\n", 0, error.start) + 1
    return DataError(
        f"{part.file.name}: line {line} is not {part.options.encoding} (byte "
        f"{data[error.start]:#04x}). Give its encoding: read(..., encoding='latin-1'), or check "
        "it with raw=True: such lines then go to quarantine"
    )


def quote_error(part: CsvPart, text: bytes) -> DataError:
    """A quote is open at the end."""
    ends, _ = record_ends(text, part.options.delimiter)
    start = int(ends[-1]) if len(ends) else 0
    line = _lines_before(part) + text.count(b"\n", 0, start) + 1
    return DataError(
        f"{part.file.name}: line {line}: a quote opens in {_shown(text[start:])!r} and never "
        "closes. Repair it, or check the file with raw=True: the line then goes to quarantine"
    )


def parse_error(part: CsvPart, text: bytes, names: Sequence[str], message: str) -> DataError:
    """A record has more or fewer fields than the header, or a value is not of its type.

    Args:
        part: That was read.
        text: Its records in UTF-8.
        names: Columns that were wanted.
        message: Arrow's.
    """
    ends, _ = record_ends(text, part.options.delimiter)
    starts = [0, *(int(end) for end in ends)]
    if starts[-1] < len(text):
        starts.append(len(text))
    good, bad = 0, len(starts) - 1  # records before `good` parse, those before `bad` do not
    while bad - good > 1:
        middle = (good + bad) // 2
        if _fails(text[starts[good] : starts[middle]], part, names):
            bad = middle
        else:
            good = middle
    problem = _problem(text[starts[good] : starts[bad]], part, names)
    line = _lines_before(part) + text.count(b"\n", 0, starts[good]) + 1
    return DataError(f"{part.file.name}: line {line}: {problem or message}")


def _lines_before(part: CsvPart) -> int:
    """Line ends before a part."""
    if not splittable(part.file, part.options):
        return content(part.file, 0, part.start, part.options).count(b"\n")
    places = range(0, part.start, _STEP_BYTES)
    return sum(
        part.file.read_range(place, min(place + _STEP_BYTES, part.start)).count(b"\n")
        for place in places
    )


def _fails(records: bytes, part: CsvPart, names: Sequence[str]) -> bool:
    if not records.strip(b"\r\n"):
        return False
    try:
        parse(records, part.columns, part, names)
    except pa.ArrowException:
        return True
    return False


def _problem(record: bytes, part: CsvPart, names: Sequence[str]) -> str | None:
    """What is wrong with a single record."""
    ragged: list[Any] = []

    def keep(row: Any) -> str:
        ragged.append(row)
        return "skip"

    types = pa.schema([pa.field(name, pa.large_string()) for name in part.header])
    text = parse(record, types, part, names, keep)
    if ragged:
        return (
            f"{ragged[0].actual_columns} fields where {ragged[0].expected_columns} are expected: "
            f"{_shown(record)!r}. Repair it, or check the file with raw=True: such lines "
            "then go to quarantine"
        )
    for name in names:
        try:
            parse(record, part.columns, part, [name])
        except pa.ArrowNotImplementedError as error:
            return f"{name}: {error}. Give another type and convert it"
        except pa.ArrowInvalid:
            return (
                f"{name}: {text[name][0].as_py()!r} is no {part.columns.field(name).type}. "
                f"Give the column's type, types={{{name!r}: pa.string()}}, or what stands for "
                "a missing value, null_values=['', 'NA'], or check the file with raw=True"
            )
    return None


def _shown(record: bytes) -> str:
    return record[:80].rstrip(b"\r\n").decode("utf-8", "backslashreplace")
