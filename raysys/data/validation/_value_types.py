"""Types of a schema's columns, and reading any value as one of them."""

from __future__ import annotations

import functools
import re
from typing import Any

import polars as pl
import pyarrow as pa

TYPES = (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32",
    "float64", "string", "bool", "date", "timestamp[UNIT]", "timestamp[UNIT, ZONE]",
)  # fmt: skip
_TIMESTAMP = re.compile(r"timestamp(?:\[(ms|us|ns)(?:, *([A-Za-z0-9_+:/-]+))?\])?")
_BLANKS = " \t"
_TRUE, _FALSE = ("true", "True", "TRUE", "1"), ("false", "False", "FALSE", "0")
_ISO = (
    r"^(\d{4}-\d\d-\d\d)(?:[T ](\d\d(?::\d\d)?)(:\d\d)?(\.\d{1,9})?)?"
    r"(?:(Z)|([+-]\d\d)(?::?(\d\d))?)?$"
)


def polars_type(name: str) -> Any:
    """The polars type of a schema's type, such as `int64` or `timestamp[us, UTC]`.

    Raises:
        ValueError: No such type.
    """
    if found := _TIMESTAMP.fullmatch(name):
        unit: Any = found[1] or "us"
        try:
            kind = pl.Datetime(unit, found[2])
            pl.Series([0]).cast(kind)
        except pl.exceptions.PolarsError:
            raise ValueError(f"type {name!r} names no time zone of the IANA database") from None
        return kind
    simple = {
        **{f"int{bits}": getattr(pl, f"Int{bits}") for bits in (8, 16, 32, 64)},
        **{f"uint{bits}": getattr(pl, f"UInt{bits}") for bits in (8, 16, 32, 64)},
        "float32": pl.Float32, "float64": pl.Float64, "string": pl.String, "bool": pl.Boolean,
        "date": pl.Date,
    }  # fmt: skip
    if name not in simple:
        raise ValueError(
            f"type {name!r} is not known; types are {', '.join(TYPES)} with the units ms, us, ns"
        )
    return simple[name]


def read_values(values: pl.Series, kind: Any) -> tuple[pl.Series, pl.Series | None]:
    """Values as a type, and which of them cannot be read as it.

    Nothing is guessed or rounded. Text reads as

    - an integer, exactly, in decimal digits (or hexadecimal ones after 0x); `7.0` is 7, since
      pandas writes integers so beside missing values; what the type cannot hold is unreadable;
    - a float in decimal or scientific notation; a NaN is a missing value. Blanks around a number
      are let be;
    - a boolean as Arrow's CSV reader has it: true, True, TRUE, 1, and the like for false;
    - a date as YYYY-MM-DD;
    - a timestamp in ISO 8601: a date, or a date and a time joined by T or a space, down to
      hours, minutes, seconds or up to nine decimals of them. Where the type has a zone the text
      must end in Z or an offset (or be a date: midnight in UTC), and where it has none it must
      not.

    Other values read as a type if they are a value of it: 4.0 is an integer, 4.5 is none; an
    integer is no timestamp. Any value reads as text.

    Args:
        values: One column of a block, of any type.
        kind: Of `polars_type`.

    Returns:
        The values, null where they are missing or unreadable; and a boolean series that is true
        where they are unreadable, None where all can be read.
    """
    source = values.dtype
    if source in (pl.Categorical, pl.Enum):
        values, source = values.cast(pl.String), pl.String()
    if source == pl.Null:
        return pl.Series(values.name, [], kind).extend_constant(None, len(values)), None
    if source.is_float():
        values = values.fill_nan(None)
    given = values
    if source == kind:
        read = values
    elif source == pl.String:
        read = _read_text(values, kind)
    elif kind == pl.String:
        read = values.cast(pl.String, strict=False)
    else:
        read = _convert(values, source, kind)
    if kind in (pl.Float32, pl.Float64) and (nan := read.is_nan()).any():
        read = read.fill_nan(None)
        given = given.set(nan.fill_null(False), None)
    if read.null_count() == given.null_count():
        return read, None
    return read, read.is_null() & given.is_not_null()


def _convert(values: pl.Series, source: Any, kind: Any) -> pl.Series:
    """Typed values as another type, null where they are no value of it."""
    nothing = pl.Series(values.name, [], kind).extend_constant(None, len(values))
    if source.is_numeric() and kind.is_float():
        return values.cast(kind, strict=False)
    if source.is_numeric() and kind.is_integer():
        read = values.cast(kind, strict=False)
        if source.is_integer():
            return read
        return read.set((read.cast(source, strict=False) != values).fill_null(False), None)
    if source == pl.Date and kind == pl.Datetime:
        read = values.cast(pl.Datetime(kind.time_unit), strict=False)
        return read if kind.time_zone is None else read.dt.replace_time_zone("UTC").cast(kind)
    if source == pl.Datetime and kind == pl.Date:
        read = values.cast(pl.Date)
        at_midnight = values.dt.replace_time_zone(None) == read.cast(pl.Datetime(source.time_unit))
        return read.set((~at_midnight).fill_null(False), None)
    same = source == pl.Datetime and kind == pl.Datetime
    if same and (source.time_zone is None) == (kind.time_zone is None):
        return _in_range(values.cast(kind, strict=False), values.dt.year())
    return nothing


def _in_range(times: pl.Series, years: pl.Series) -> pl.Series:
    """Timestamps, null in years that not all belong to int64's nanoseconds, if these they are."""
    if times.dtype.time_unit != "ns":  # type: ignore[attr-defined]
        return times
    return times.set((~years.is_between(1678, 2261)).fill_null(False), None)


def _read_text(text: pl.Series, kind: Any) -> pl.Series:
    if kind.is_integer():
        read = text.cast(kind, strict=False)
        if read.null_count() == text.null_count():
            return read
        rest = (read.is_null() & text.is_not_null()).arg_true()
        again = text.gather(rest).str.strip_chars(_BLANKS)
        found = again.str.strip_suffix(".0").cast(kind, strict=False)
        for place in again.str.contains("^0[xX]").arg_true():
            found = found.scatter(place, _hexadecimal(again[place], kind))
        return read.scatter(rest, found)
    if kind.is_float():
        read = text.cast(kind, strict=False)
        if read.null_count() == text.null_count():
            return read
        rest = (read.is_null() & text.is_not_null()).arg_true()
        again = text.gather(rest).str.strip_chars(_BLANKS)
        return read.scatter(rest, again.cast(kind, strict=False))
    if kind == pl.Boolean:
        true, false = text.is_in(_TRUE), text.is_in(_FALSE)
        return true.set((~true & ~false).fill_null(False), None)
    if kind == pl.Date:
        shape = text.str.len_bytes() == 10
        return text.str.to_date("%Y-%m-%d", strict=False).set((~shape).fill_null(False), None)
    return _read_timestamps(text, kind)


def _hexadecimal(text: str, kind: Any) -> int | None:
    """As Arrow's CSV reader has it, which reads the columns that have no unreadable value."""
    try:
        arrow = pl.Series([], dtype=kind).to_arrow().type
        return pa.array([text]).cast(arrow)[0].as_py()
    except pa.ArrowInvalid:
        return None


def _read_timestamps(text: pl.Series, kind: Any) -> pl.Series:
    """The usual forms of full width at once; of all others, each distinct one by its parts."""
    zone = "Z" if kind.time_zone else ""
    naive = pl.Datetime(kind.time_unit)
    usual = text.str.to_datetime(
        f"%Y-%m-%dT%H:%M:%S{zone}", strict=False, time_unit=kind.time_unit, cache=False
    ).dt.replace_time_zone(None)
    usual = usual.set((text.str.len_bytes() != 19 + len(zone)).fill_null(False), None)
    if usual.null_count() > text.null_count():
        rest = (usual.is_null() & text.is_not_null()).arg_true()
        distinct = text.gather(rest).unique().alias("text")
        parts = pl.DataFrame(distinct).with_columns(read=_by_parts(naive, bool(zone)))
        found = pl.DataFrame(text.gather(rest).alias("text")).join(
            parts, on="text", how="left", maintain_order="left"
        )
        usual = usual.scatter(rest, found["read"])
    usual = _in_range(usual, text.str.head(4).cast(pl.Int32, strict=False))
    return usual.dt.replace_time_zone("UTC").cast(kind) if zone else usual


def _by_parts(naive: Any, zoned: bool) -> pl.Expr:
    """Column `text` as a time in UTC, if it has an offset, or as it stands."""
    part = pl.col("text").str.extract_groups(_ISO).struct.field
    clock = part("2").fill_null("00:00")
    clock = pl.when(clock.str.len_bytes() == 2).then(clock + ":00").otherwise(clock)
    time = pl.concat_str(
        part("1"), pl.lit("T"), clock, part("3").fill_null(":00"), part("4").fill_null(""),
    )  # fmt: skip
    read = time.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", strict=False, time_unit=naive.time_unit)
    hours = part("6").cast(pl.Int32)
    minutes = hours.abs() * 60 + part("7").cast(pl.Int32).fill_null(0)
    minutes = pl.when(part("6").str.starts_with("-")).then(-minutes).otherwise(minutes)
    offset = pl.duration(minutes=minutes.fill_null(0))
    has_zone, has_time = part("5").is_not_null() | hours.is_not_null(), part("2").is_not_null()
    whole = part("3").is_not_null() | part("4").is_null()  # decimals are of seconds
    right = has_zone | ~has_time if zoned else ~has_zone
    fits = right & whole & ~(has_zone & ~has_time)
    return pl.when(fits).then((read - offset).cast(naive))


@functools.lru_cache(256)
def is_temporal(name: str) -> bool:
    """Whether a schema's type is a date or a timestamp."""
    return name == "date" or name.startswith("timestamp")
