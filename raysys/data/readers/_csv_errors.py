"""Errors of a part of CSV with the number of the line, by reading it again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.readers._column_types import text_schema
from raysys.data.readers._csv import CsvPart, parse, parse_leniently
from raysys.data.readers._exact_values import inexact_row, is_number, may_lose_digits
from raysys.data.readers._record_boundaries import count_lines, record_ends, record_lines
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence


def line_error(part: CsvPart, data: bytes, error: UnicodeDecodeError) -> DataError:
    """Error of a line that is not in the encoding."""
    line = part.first_line + count_lines(data[: error.start])
    return DataError(
        f"{part.file.name}: line {line} is not valid {part.options.encoding} (byte "
        f"{data[error.start]:#04x}). Give its encoding: read(..., encoding='latin-1'), or read it "
        "with raw=True and validate it: such lines then go to quarantine"
    )


def quote_error(part: CsvPart, text: bytes) -> DataError:
    """Error of a quote that is open at the end."""
    ends, _ = record_ends(text, part.options.delimiter)
    start = int(ends[-1]) if len(ends) else 0
    line = part.first_line + count_lines(text[:start])
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
    line = part.first_line + count_lines(text[: starts[good]])
    return DataError(f"{part.file.name}: line {line}: {problem or message}")


def require_exact(part: CsvPart, text: bytes, table: pa.Table) -> None:
    """Raise a DataError if a column of an inferred type has a value that the type changes."""
    numbers = [f for f in table.schema if is_number(f.type) and f.name not in part.given]
    if not (numbers and may_have_codes(text, part.options.delimiter)):
        numbers = [f for f in numbers if may_lose_digits(table[f.name])]
    names = [field.name for field in numbers]
    written = parse(text, part, names, text_schema(names)) if names else table
    for field in numbers:
        texts = written[field.name]
        row = inexact_row(field.type, pc.utf8_trim_whitespace(texts))
        if row is not None:
            ends, _ = record_ends(text, part.options.delimiter)
            line = part.first_line + int(record_lines(text, ends)[row])
            raise DataError(
                f"{part.file.name}: line {line}: {field.name}: "
                f"{texts[row].as_py()!r} is not kept as written by the inferred type {field.type}. "
                f"Give the column's type, types={{{field.name!r}: pa.string()}}"
            )


def may_have_codes(text: bytes, delimiter: str) -> bool:
    """Whether a number may start with 0 or `+`: a scan that costs a fifth of the parsing.

    Comparing bytes in numpy, piece by piece, costs as much.
    """
    whole = pa.LargeStringArray.from_buffers(
        1, pa.py_buffer(np.array([0, len(text)], np.int64)), pa.py_buffer(text)
    )
    start = rf'(?:^|[\n{re.escape(delimiter)}])\s*"?\s*'
    end = rf'(?:["\s.{re.escape(delimiter)}]|$)'
    code = rf"{start}(?:-?0[0-9]+{end}|-?0[xX]|\+[0-9]{{7}})"
    return bool(pc.match_substring_regex(whole, code)[0].as_py())


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
