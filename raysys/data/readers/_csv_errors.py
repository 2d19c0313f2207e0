"""Errors of a part of CSV with the number of the line, by reading it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from raysys.data.readers._column_types import text_schema
from raysys.data.readers._csv import CsvPart, content, parse, parse_leniently, splittable
from raysys.data.readers._record_boundaries import record_ends
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

_STEP_BYTES = 64 << 20


def line_error(part: CsvPart, data: bytes, error: UnicodeDecodeError) -> DataError:
    """Error of a line that is not in the encoding."""
    line = _lines_before(part) + data.count(b"\n", 0, error.start) + 1
    return DataError(
        f"{part.file.name}: line {line} is not valid {part.options.encoding} (byte "
        f"{data[error.start]:#04x}). Give its encoding: read(..., encoding='latin-1'), or read it "
        "with raw=True and validate it: such lines then go to quarantine"
    )


def quote_error(part: CsvPart, text: bytes) -> DataError:
    """Error of a quote that is open at the end."""
    ends, _ = record_ends(text, part.options.delimiter)
    start = int(ends[-1]) if len(ends) else 0
    line = _lines_before(part) + text.count(b"\n", 0, start) + 1
    return DataError(
        f"{part.file.name}: line {line}: a quote opens in {_shown(text[start:])!r} and never "
        "closes. Repair it, or read with raw=True and validate: the line then goes to quarantine"
    )


def parse_error(part: CsvPart, text: bytes, names: Sequence[str], message: str) -> DataError:
    """Error of a record with more or fewer fields than the header, or with an invalid value."""
    ends, _ = record_ends(text, part.options.delimiter)
    starts = [0, *(int(end) for end in ends)]
    if starts[-1] < len(text):
        starts.append(len(text))
    good, bad = 0, len(starts) - 1  # records before `good` parse, those before `bad` fail
    while bad - good > 1:
        middle = (good + bad) // 2
        fails = _fails(text[starts[good] : starts[middle]], part, names)
        good, bad = (good, middle) if fails else (middle, bad)
    problem = _problem(text[starts[good] : starts[bad]], part, names)
    line = _lines_before(part) + text.count(b"\n", 0, starts[good]) + 1
    return DataError(f"{part.file.name}: line {line}: {problem or message}")


def _lines_before(part: CsvPart) -> int:
    """Number of line ends before a part."""
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
        parse(records, part, names, part.columns)
    except pa.ArrowException:
        return True
    return False


def _problem(record: bytes, part: CsvPart, names: Sequence[str]) -> str | None:
    """The error of a single record."""
    texts, malformed = parse_leniently(record, part, text_schema(part.header))
    if malformed:
        return (
            f"{malformed[0].actual_columns} fields instead of {malformed[0].expected_columns}: "
            f"{_shown(record)!r}. Repair it, or read with raw=True and validate: such lines then "
            "go to quarantine"
        )
    for name in names:
        try:
            parse(record, part, [name], part.columns)
        except pa.ArrowNotImplementedError as error:
            return f"{name}: {error}. Give another type and convert it"
        except pa.ArrowInvalid:
            return (
                f"{name}: {texts[name][0].as_py()!r} is not a valid "
                f"{part.columns.field(name).type}. Give the column's type, types={{{name!r}: "
                "pa.string()}, or the texts of missing values, null_values=['', 'NA'], or read "
                "with raw=True and validate"
            )
    return None


def _shown(record: bytes) -> str:
    return record[:80].rstrip(b"\r\n").decode("utf-8", "backslashreplace")
