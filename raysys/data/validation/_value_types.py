"""Types of a schema's columns, and conversion of values to them."""

from __future__ import annotations

import functools
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysys.data._polars import pl

# Schema types and the names of polars' types.
_SIMPLE_TYPES = {
    "int8": "Int8", "int16": "Int16", "int32": "Int32", "int64": "Int64",
    "uint8": "UInt8", "uint16": "UInt16", "uint32": "UInt32", "uint64": "UInt64",
    "float32": "Float32", "float64": "Float64", "string": "String", "bool": "Boolean",
    "date": "Date",
}  # fmt: skip
_TIMESTAMP = re.compile(r"timestamp(?:\[(ms|us|ns)(?:, *([A-Za-z0-9_+:/-]+))?\])?")
_BLANKS = " \t"
_TRUE, _FALSE = ("true", "True", "TRUE", "1"), ("false", "False", "FALSE", "0")
_REFUSED = re.compile("Failed to parse string: '(.*)' as a scalar of type", re.DOTALL)
_FIRST_ROWS, _MAX_REFUSED = 8192, 4  # texts such as `N/A`, which are repeated
_ISO = (
    r"^(\d{4}-\d\d-\d\d)(?:[T ](\d\d(?::\d\d)?)(:\d\d)?(\.\d{1,9})?)?"
    r"(?:(Z)|([+-]\d\d)(?::?(\d\d))?)?$"
)


def polars_type(name: str) -> Any:
    """The polars type of a schema's type, such as `int64` or `timestamp[us, UTC]`.

    Raises:
        ValueError: The type or its time zone is unknown.
    """
    if match := _TIMESTAMP.fullmatch(name):
        unit: Any = match[1] or "us"
        try:
            kind = pl.Datetime(unit, match[2])
            pl.Series([0]).cast(kind)
        except pl.exceptions.PolarsError:
            raise ValueError(
                f"unknown time zone in {name!r}: give one of the IANA database"
            ) from None
        return kind
    if name not in _SIMPLE_TYPES:
        types = ", ".join([*_SIMPLE_TYPES, "timestamp[UNIT]", "timestamp[UNIT, ZONE]"])
        raise ValueError(f"unknown type {name!r}; types are {types} with the units ms, us, ns")
    return getattr(pl, _SIMPLE_TYPES[name])


def read_values(values: pl.Series, kind: Any) -> tuple[pl.Series, pl.Series | None]:
    """Values as a type, and a mask of those that are not valid.

    Nothing is guessed or rounded. Text reads as

    - an integer in decimal digits, or hexadecimal ones after 0x, within the type's range; `7.0`
      is 7, since pandas writes integers beside missing values so;
    - a float in decimal or scientific notation; NaN is missing. Blanks around numbers are ignored;
    - a boolean as Arrow's CSV reader has it: true, True, TRUE, 1, and the like for false;
    - a date as YYYY-MM-DD;
    - a timestamp in ISO 8601: a date, or a date and a time joined by T or a space, down to
      hours, minutes, seconds or up to nine decimals. For a type with a zone the text must end in
      Z or an offset (or be a date: midnight in UTC); for a type without, it must not.

    Other values are valid if the type can represent them: 4.0 is an integer, 4.5 is not; an
    integer is not a timestamp. Any value is valid as text.

    Args:
        values: A column of a block, of any type.
        kind: Type of `polars_type`.

    Returns:
        The values, null where they are missing or invalid; and a boolean series, true where they
        are invalid, None if all are valid.
    """
    source = values.dtype
    if source in (pl.Categorical, pl.Enum):
        values, source = values.cast(pl.String), pl.String()
    if source == pl.Null:
        return pl.Series(values.name, [], kind).extend_constant(None, len(values)), None
    if source.is_float():
        values = values.fill_nan(None)
    written = values
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
        written = written.set(nan.fill_null(False), None)
    if read.null_count() == written.null_count():
        return read, None
    return read, read.is_null() & written.is_not_null()


def _convert(values: pl.Series, source: Any, kind: Any) -> pl.Series:
    """Typed values as another type, null where it cannot represent them."""
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
        times = values.cast(kind, strict=False)
        return _in_range(times, values.dt.year()) if kind.time_unit == "ns" else times
    return pl.Series(values.name, [], kind).extend_constant(None, len(values))


def _in_range(times: pl.Series, years: pl.Series) -> pl.Series:
    """Timestamps, null in years that int64 does not cover in nanoseconds."""
    return times.set((~years.is_between(1678, 2261)).fill_null(False), None)


def _read_text(text: pl.Series, kind: Any) -> pl.Series:
    if kind.is_numeric():
        read = text.cast(kind, strict=False)
        if read.null_count() == text.null_count():
            return read
        failed = (read.is_null() & text.is_not_null()).arg_true()
        stripped = text.gather(failed).str.strip_chars(_BLANKS)
        if kind.is_float():
            return read.scatter(failed, stripped.cast(kind, strict=False))
        integers = stripped.str.strip_suffix(".0").cast(kind, strict=False)
        for place in stripped.str.contains("^0[xX]").arg_true():
            integers = integers.scatter(place, _hexadecimal(stripped[place], kind))
        return read.scatter(failed, integers)
    if kind == pl.Boolean:
        true, false = text.is_in(_TRUE), text.is_in(_FALSE)
        return true.set((~true & ~false).fill_null(False), None)
    if kind == pl.Date:
        shape = text.str.len_bytes() == 10
        return text.str.to_date("%Y-%m-%d", strict=False).set((~shape).fill_null(False), None)
    return _read_timestamps(text, kind)


def _hexadecimal(text: str, kind: Any) -> int | None:
    """An integer as Arrow's CSV reader reads it, since valid columns are read by it."""
    try:
        arrow = pl.Series([], dtype=kind).to_arrow().type
        return pa.array([text]).cast(arrow)[0].as_py()
    except pa.ArrowInvalid:
        return None


def _read_timestamps(text: pl.Series, kind: Any) -> pl.Series:
    """Texts in ISO 8601 at once; of all others, each distinct one by its parts."""
    zone = "Z" if kind.time_zone else ""
    naive = pl.Datetime(kind.time_unit)
    usual = _by_arrow(text, kind)
    if usual is None:
        usual = text.str.to_datetime(
            f"%Y-%m-%dT%H:%M:%S{zone}", strict=False, time_unit=kind.time_unit, cache=False
        ).dt.replace_time_zone(None)
        usual = usual.set((text.str.len_bytes() != 19 + len(zone)).fill_null(False), None)
    if usual.null_count() > text.null_count():
        failed = (usual.is_null() & text.is_not_null()).arg_true()
        unusual = pl.DataFrame(text.gather(failed).alias("text"))
        distinct = unusual.unique().with_columns(read=_by_parts(naive, bool(zone)))
        joined = unusual.join(distinct, on="text", how="left", maintain_order="left")
        usual = usual.scatter(failed, joined["read"])
    if kind.time_unit == "ns":
        usual = _in_range(usual, text.str.head(4).cast(pl.Int32, strict=False))
    return usual.dt.replace_time_zone("UTC").cast(kind) if zone else usual


def _by_arrow(text: pl.Series, kind: Any) -> pl.Series | None:
    """Times in UTC by Arrow's parser, three times as fast as polars'; null where it refuses a text.

    None if it refuses more than a few distinct texts, or one that the first rows do not have.
    """
    values: Any = text.to_arrow(compat_level=pl.CompatLevel.oldest())
    zoned = pa.timestamp(kind.time_unit, kind.time_zone and "UTC")
    refused: list[str] = []
    rows = _FIRST_ROWS
    while len(refused) <= _MAX_REFUSED:
        part = values[:rows]
        if refused:
            is_refused = pc.is_in(part, value_set=pa.array(refused, part.type))
            part = pc.if_else(is_refused, None, part)
        try:
            times = part.cast(zoned)
        except pa.ArrowInvalid as error:
            match = _REFUSED.search(str(error))
            if match is None or rows > _FIRST_ROWS:
                return None
            refused.append(match[1])
            continue
        if rows >= len(values):
            return pl.Series(text.name, times).dt.replace_time_zone(None)
        rows = len(values)
    return None


def _by_parts(naive: Any, zoned: bool) -> pl.Expr:
    """Column `text` as a time, in UTC if it has an offset."""
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
    has_seconds = part("3").is_not_null() | part("4").is_null()  # decimals are of seconds
    valid_zone = has_zone | ~has_time if zoned else ~has_zone
    valid = valid_zone & has_seconds & ~(has_zone & ~has_time)
    return pl.when(valid).then((read - offset).cast(naive))


@functools.lru_cache(256)
def is_temporal(name: str) -> bool:
    """Whether a schema's type is a date or a timestamp."""
    return name == "date" or name.startswith("timestamp")
