"""Raw values of Arrow, NumPy, lists or one request in the types that a featurizer computes with.

number    float64, NaN where missing: integers, floats, booleans, decimals
category  text; integers are written in decimal digits, booleans as true and false
time      int64, microseconds since 1970-01-01: times, dates, ISO 8601 text; converted to UTC if
          they have a zone; an empty text is a missing time
text      unchanged

`number_of`, `category_of`, `time_of` and `text_of` convert one value, or raise a `DataError`; a
column of a type that needs no decision by value is converted at once.
"""

from __future__ import annotations

import datetime as dt
import decimal
import numbers as abstract
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

NO_TIME = np.iinfo(np.int64).min
DAY_US = 86_400_000_000
_EPOCH = dt.datetime(1970, 1, 1)
_MICROSECOND = dt.timedelta(microseconds=1)
_TICKS_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
# From this many values on, dictionary encoding first is faster.
_ENCODED_FROM = 64


class CodedColumn(NamedTuple):
    """A column of texts."""

    values: list[str]  # occurring texts, mostly once each
    codes: np.ndarray  # place of each row's text in `values`, int64 `(n,)`; -1 where missing


def number_of(name: str, value: Any) -> float:
    """A value as a number; NaN if missing."""
    if value is None:
        return np.nan
    if isinstance(value, float | int | abstract.Real | decimal.Decimal | np.bool_):
        try:
            return float(value)
        except OverflowError:
            pass
    if _is_na(value):
        return np.nan
    raise _invalid(name, value, "number")


def category_of(name: str, value: Any) -> str | None:
    """A value as a category; None if missing."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        if value != value:
            return None
        if float(value).is_integer():  # integers with a missing one among them
            return str(int(value))
    if _is_na(value):
        return None
    raise _invalid(name, value, "category: give text, an integer or a boolean; Binned takes floats")


def time_of(name: str, value: Any) -> int:
    """A value as microseconds since 1970-01-01; `NO_TIME` if missing."""
    if value is None or (isinstance(value, str) and not value) or _is_na(value):
        return NO_TIME
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value)
        except ValueError:
            raise _invalid(name, value, "ISO 8601 time") from None
    if value != value:  # NaN, NaT
        return NO_TIME
    if isinstance(value, np.datetime64):
        return int(_ticks(value.reshape(1))[0])
    if isinstance(value, dt.datetime):
        zone = value.tzinfo
        plain = value if zone is None else value.astimezone(dt.UTC).replace(tzinfo=None)
        return (plain - _EPOCH) // _MICROSECOND
    if isinstance(value, dt.date):
        return (value.toordinal() - _EPOCH.toordinal()) * DAY_US
    raise _invalid(name, value, "time: give a datetime, date, datetime64 or ISO 8601 text")


def text_of(name: str, value: Any) -> str | None:
    """A value as text; None if missing."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float | np.floating) and value != value:
        return None
    if _is_na(value):
        return None
    raise _invalid(name, value, "text")


def _is_na(value: Any) -> bool:
    """Whether a value is pandas' NA or NaT; pandas may not be loaded."""
    return type(value).__name__ in ("NAType", "NaTType")


def _invalid(name: str, value: Any, expected: str) -> DataError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return DataError(f"{name}: {shown} ({type(value).__name__}) is not a valid {expected}")


# --- columns ---


def numbers(name: str, column: Any) -> np.ndarray:
    """A column of numbers, float64 `(n,)`, contiguous."""
    if is_arrow(column):
        kind, t = column.type, pa.types
        if t.is_boolean(kind):
            column, kind = column.cast(pa.uint8()), pa.uint8()
        if t.is_integer(kind) or t.is_floating(kind) or t.is_null(kind):
            values = pc.cast(_chunk(column), pa.float64(), safe=False)
            return np.ascontiguousarray(values.to_numpy(zero_copy_only=False))
        column = column.to_pylist()
    if isinstance(column, np.ndarray) and column.dtype.kind in "fiub":
        return np.ascontiguousarray(column, np.float64)
    return np.array([number_of(name, value) for value in column], np.float64)


def categories(name: str, column: Any) -> CodedColumn:
    """A column of categories."""
    return _coded(name, column, category_of)


def texts(name: str, column: Any) -> CodedColumn:
    """A column of texts, which are not converted."""
    return _coded(name, column, text_of)


def times(name: str, column: Any) -> np.ndarray:
    """A column of times, int64 `(n,)`, in microseconds since 1970-01-01; `NO_TIME` if missing."""
    if isinstance(column, np.ndarray) and column.dtype.kind == "M":
        return _ticks(column)
    if is_arrow(column):
        kind, t = column.type, pa.types
        if t.is_timestamp(kind) or t.is_date(kind):
            return _arrow_times(column)
        if t.is_string(kind) or t.is_large_string(kind):
            coded = texts(name, column)
            ticks = [time_of(name, value) for value in coded.values]
            return np.array([*ticks, NO_TIME], np.int64)[coded.codes]
        column = column.to_pylist()
    return np.array([time_of(name, value) for value in column], np.int64)


def _ticks(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.astype("datetime64[us]").view(np.int64))


def _arrow_times(column: Any) -> np.ndarray:
    kind, t = column.type, pa.types
    ticks = _chunk(column.cast(pa.int32()) if t.is_date32(kind) else column).cast(pa.int64())
    ticks = pc.fill_null(ticks, NO_TIME).to_numpy()
    if t.is_timestamp(kind) and kind.unit == "ns":
        return np.where(ticks == NO_TIME, NO_TIME, ticks // 1000)
    factor = DAY_US if t.is_date32(kind) else _TICKS_US["ms" if t.is_date(kind) else kind.unit]
    return np.where(ticks == NO_TIME, NO_TIME, ticks * factor)


def _coded(name: str, column: Any, convert: Callable[[str, Any], str | None]) -> CodedColumn:
    if is_arrow(column):
        return _arrow_coded(name, column, convert)
    if isinstance(column, np.ndarray) and column.dtype.kind in "OUiufb":
        column = column.tolist()
    if len(column) >= _ENCODED_FROM:
        try:
            return _arrow_coded(name, pa.array(column, from_pandas=True), convert)
        except (pa.ArrowException, OverflowError, UnicodeError):
            pass  # values of several types
    values = [convert(name, value) for value in column]
    codes = np.array([-1 if value is None else row for row, value in enumerate(values)], np.int64)
    return CodedColumn([value or "" for value in values], codes)


def _arrow_coded(name: str, column: Any, convert: Callable[[str, Any], str | None]) -> CodedColumn:
    kind = column.type
    if pa.types.is_null(kind):
        return CodedColumn([], np.full(len(column), -1))
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    elif pa.types.is_string_view(kind):
        column = column.cast(pa.large_string())
    encoded = _chunk(column).dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy().astype(np.int64)
    values = encoded.dictionary.to_pylist()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return CodedColumn(values, codes)
    values = [convert(name, value) for value in values]
    if None in values:
        places = [-1 if value is None else row for row, value in enumerate(values)]
        codes = np.array([*places, -1], np.int64)[codes]
    return CodedColumn([value or "" for value in values], codes)


def is_arrow(column: Any) -> bool:
    """Whether a column is an Arrow array."""
    return type(column).__module__.partition(".")[0] == "pyarrow"


def _chunk(column: Any) -> Any:
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
