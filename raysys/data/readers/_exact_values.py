"""Types that keep numbers as they are written, to the last digit."""

from __future__ import annotations

import math
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

# Postal codes, telephone numbers and hexadecimal ids: other texts once they are numbers.
_CODE = r"^(-?0[0-9xX]|\+[0-9]{7})"
_WHOLE = r"^-?[0-9]+$"
_LONG = r"^[+-]?[0-9]{16}|[eE][+-]?[0-9]{3}"  # may exceed the digits or the range of float64
_EXACT = 2.0**53  # float64 has every integer below it


def is_number(kind: pa.DataType) -> bool:
    """Whether a type is one of integers or floats."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def number_type(kind: pa.DataType, texts: pa.ChunkedArray) -> pa.DataType:
    """Type of a column that was inferred to have numbers, from its values as written.

    Text if a value is a code such as `00501` or has more digits than float64 keeps; uint64 for
    integers beyond int64.
    """
    texts = pc.utf8_trim_whitespace(texts.drop_null())
    if inexact_row(kind, texts) is None:
        return kind
    if (
        _first_match(texts, _CODE) is None
        and pc.all(pc.match_substring_regex(texts, _WHOLE)).as_py()
    ):
        try:
            texts.cast(pa.uint64())
        except pa.ArrowInvalid:
            return pa.large_string()
        return pa.uint64()
    return pa.large_string()


def inexact_row(kind: pa.DataType, texts: pa.ChunkedArray) -> int | None:
    """Number of the first value that a type of numbers does not keep; None if it keeps all."""
    row = _first_match(texts, _CODE)
    if row is not None or not pa.types.is_floating(kind):
        return row
    long = pc.indices_nonzero(pc.match_substring_regex(texts, _LONG).fill_null(False))
    values = texts.take(long).to_pylist()
    return next((r for r, v in zip(long.to_pylist(), values, strict=True) if loses_digits(v)), None)


def loses_digits(number: str) -> bool:
    """Whether float64 changes the integer digits of a number, or has none for it."""
    value = float(number)
    if math.isinf(value):
        return True
    # As its shortest text, or with all digits of the float itself, as C prints it.
    return abs(value) >= _EXACT and Decimal(number) not in (Decimal(repr(value)), Decimal(value))


def may_lose_digits(column: pa.ChunkedArray) -> bool:
    """Whether a float of a column, or within its lists and structs, is 2**53 or more."""
    kind = column.type
    if pa.types.is_floating(kind):
        extremes = pc.min_max(column).as_py()
        return any(value is not None and abs(value) >= _EXACT for value in extremes.values())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return may_lose_digits(pc.list_flatten(column))
    if pa.types.is_struct(kind):
        return any(may_lose_digits(pc.struct_field(column, n)) for n in range(kind.num_fields))
    return False


def _first_match(texts: pa.ChunkedArray, pattern: str) -> int | None:
    """Number of the first text that matches; None if there is none."""
    row = pc.index(pc.match_substring_regex(texts, pattern), True).as_py()
    return None if row < 0 else int(row)
