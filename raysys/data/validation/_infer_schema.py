"""Inference of a schema from a table, to be edited and to validate the next one with."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysys.arguments import checked
from raysys.data._blocks import value_task
from raysys.data._polars import pl
from raysys.data.readers._column_types import MALFORMED
from raysys.data.validation._column_statistics import order_statistics, statistics
from raysys.data.validation._row_rules import as_time, polars_column, to_arrow
from raysys.data.validation._schema import RESERVED, Column, DistributionBounds, RowBounds, Schema
from raysys.data.validation._uniqueness import hashes_of, repeated_hashes
from raysys.data.validation._value_types import is_temporal, polars_type, read_values
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.data._table import Table

# Types of a text column, tried in this order: the first as which all values read is inferred.
_GUESSES = ("int64", "float64", "bool", "date", "timestamp[us]", "timestamp[us, UTC]")
_MAX_ALLOWED = 20  # distinct texts of a column with a list of allowed values
_MIN_ROWS_PER_VALUE = 10  # rows per allowed value
_MIN_ROWS = 100  # rows from which unique columns and distributions are inferred
# Names of columns that identify: `id`, `user_id`, `userId`, `ID`, `zip code`, `order_no`.
_ID_NAME = re.compile(
    r"(?i:(^|[_\s.-])(id|ids|key|code|no|nr|number|uid|zip|index))$|[a-z0-9](Id|ID|Key|Code|No|Nr)$"
)
_MARGIN = 0.1  # fraction of the range by which it is widened on each side
_NULL_MARGIN = 0.05  # tolerance of the fraction of missing values


@checked
def infer_schema(table: Table, name: str) -> Schema:
    """Infer a schema that the table itself satisfies.

    - Types are the table's; columns of `read(path, raw=True)` get the first of int64, float64,
      bool, date and timestamp as which all their values read, else string. Texts with leading
      zeros are not numbers. Columns of other types (lists, structs, bytes) are left out.
    - A column is nullable if a value is missing.
    - Numbers get their range, widened by a tenth on each side but not across zero; dates and
      times their first day. Integers that are ids by their name (`id`, `user_id`, `zip_code`) get
      the lower bound 0 if none is negative, and no other: the next file has new ones.
    - Texts with up to 20 distinct values, and ten rows for each, get the list of allowed values.
    - From 100 rows on, columns without missing and repeated values are unique, but not floats.
      Unique numbers get the lower bound 0 if none is negative, and no other.
    - From 100 rows on, the median of numbers may move between the quartiles of this table, the
      fraction of missing values by 0.05, and the number of rows down to half.

    Args:
        table: Valid rows.
        name: Name of the schema.

    Raises:
        DataError: No column has a type that a schema supports.
    """
    types = _types(table)
    if not types:
        raise DataError(f"no column of {table.schema.names[:20]} has a type that a schema supports")
    typed = table.map_blocks(_typed, types, name="infer_read")
    stats, many = statistics(typed, list(types)), len(typed) >= _MIN_ROWS
    texts = _allowed(typed, [column for column, kind in types.items() if kind == "string"])
    keys = _keys(typed, types, stats) if many else set()
    ids = keys | {c for c, kind in types.items() if "int" in kind and _ID_NAME.search(c)}
    ranges = [
        column
        for column, kind in types.items()
        if column not in ids and _is_number(kind) and stats[column]["min"] != stats[column]["max"]
    ]
    quartiles = _quartiles(typed, stats, ranges) if many else {}
    columns, distributions = {}, {}
    for column, kind in types.items():
        column_stats = stats[column]
        low, high = _range(column_stats, kind, column in ids)
        columns[column] = Column(
            type=kind,
            nullable=column_stats["nulls"] > 0,
            min=low,
            max=high,
            allowed=texts.get(column),
        )
        bounds: dict[str, Any] = {}
        if column in quartiles:
            bounds["median"] = quartiles[column]
        if many and column_stats["nulls"]:
            share = column_stats["null_share"]
            low, high = max(0.0, share - _NULL_MARGIN), min(1.0, share + _NULL_MARGIN)
            bounds["null_share"] = [math.floor(low * 1e3) / 1e3, math.ceil(high * 1e3) / 1e3]
        if bounds:
            distributions[column] = DistributionBounds(**bounds)
    return Schema(
        name=name,
        columns=columns,
        unique=[[column] for column in types if column in keys],
        distributions=distributions,
        rows=RowBounds(min=len(typed) // 2) if many else RowBounds(),
    )


def _types(table: Table) -> dict[str, str]:
    """Schema types by column; columns of unsupported types are left out."""
    fields = [field for field in table.schema if field.name not in RESERVED]
    types = {field.name: name for field in fields if (name := type_name(field.type))}
    if MALFORMED in table.schema.names:
        texts = [field.name for field in fields if pa.types.is_large_string(field.type)]
        parts = table.gather(guesses, texts, name="infer_types")
        for name in texts:
            fits = [kind for kind in _GUESSES if all(kind in part[name] for part in parts)]
            # A column without any value reads as every type.
            types[name] = fits[0] if fits and len(fits) < len(_GUESSES) else "string"
    return types


def type_name(kind: pa.DataType) -> str | None:
    """Schema type of an Arrow type; None if unsupported."""
    t = pa.types
    if t.is_dictionary(kind):
        kind = kind.value_type
    if t.is_null(kind) or t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind):
        return "string"
    if t.is_date(kind):
        return "date"
    if t.is_timestamp(kind):
        unit = "ms" if kind.unit == "s" else kind.unit
        return f"timestamp[{unit}, {kind.tz}]" if kind.tz else f"timestamp[{unit}]"
    if t.is_integer(kind) or t.is_boolean(kind):
        return str(kind)
    return {pa.float32(): "float32", pa.float64(): "float64"}.get(kind)


def guesses(block: pa.Table, columns: Sequence[str]) -> dict[str, set[str]]:
    """Types as which all values of a text column read, by column."""
    candidates = {}
    for name in columns:
        values = polars_column(block, name).drop_nulls()
        candidates[name] = {
            kind
            for kind in _GUESSES
            # The first 20 values rule out most types.
            if all(read_values(v, polars_type(kind))[1] is None for v in (values[:20], values))
        }
        if values.str.contains(r"^[+-]?0\d").any():
            candidates[name] -= {"int64", "float64"}
    return candidates


def _typed(block: pa.Table, types: Mapping[str, str]) -> pa.Table:
    """Rows without malformed lines, in the schema's types."""
    if MALFORMED in block.column_names:
        block = block.filter(block[MALFORMED].is_null())
    columns = [read_values(polars_column(block, n), polars_type(t))[0] for n, t in types.items()]
    return to_arrow(pl.DataFrame(columns))


def _allowed(typed: Table, columns: Sequence[str]) -> dict[str, list[str]]:
    """Distinct values of text columns that have few, by column."""
    parts, allowed = typed.gather(_distinct_texts, list(columns), name="infer_values"), {}
    for name in columns:
        if any(part[name] is None for part in parts):
            continue
        values = sorted(set().union(*(part[name] for part in parts)))
        rows = max(1, len(values)) * _MIN_ROWS_PER_VALUE
        if values and len(values) <= _MAX_ALLOWED and len(typed) >= rows:
            allowed[name] = values
    return allowed


def _distinct_texts(block: pa.Table, columns: Sequence[str]) -> dict[str, list[str] | None]:
    distinct = {name: polars_column(block, name).drop_nulls().unique() for name in columns}
    return {
        name: values.to_list() if len(values) <= _MAX_ALLOWED else None
        for name, values in distinct.items()
    }


def _keys(typed: Table, types: Mapping[str, str], stats: Mapping[str, Any]) -> set[str]:
    """Columns without missing and repeated values."""
    names = [
        name
        for name, kind in types.items()
        if not stats[name]["nulls"] and not kind.startswith("float") and kind != "bool"
    ]
    parts = typed.gather(_all_distinct, names, name="infer_keys")
    names = [name for name in names if all(part[name] for part in parts)]
    if not names:
        return set()
    task, groups = value_task("infer_hash"), [[name] for name in names]
    hashes = [task.remote(hashes_of, block, groups) for block in typed.blocks()]
    _, counts = repeated_hashes(hashes, len(typed))
    return {name for name, count in zip(names, counts, strict=True) if not count}


def _all_distinct(block: pa.Table, columns: Sequence[str]) -> dict[str, bool]:
    return {name: not polars_column(block, name).is_duplicated().any() for name in columns}


def _quartiles(
    typed: Table, stats: Mapping[str, Any], columns: Sequence[str]
) -> dict[str, list[Any]]:
    ranks = {}
    for name in columns:
        if count := stats[name]["rows"] - stats[name]["nulls"]:
            ranks[name] = [(count - 1) // 4, count - 1 - (count - 1) // 4]
    return order_statistics(typed, ranks)


def _range(stats: Mapping[str, Any], kind: str, is_id: bool) -> tuple[Any, Any]:
    """Bounds of a column's values."""
    low, high = stats["min"], stats["max"]
    if low is None or not (_is_number(kind) or is_temporal(kind)):
        return None, None
    if is_temporal(kind):
        first = as_time(low, polars_type(kind))
        return (first if kind == "date" else first.date()), None
    zero = 0 if low >= 0 else None
    span = high - low
    if is_id or not 0 < span < math.inf:
        return zero, None
    if not kind.startswith("float"):
        margin = math.ceil(span * _MARGIN)
        low, high = int(low) - margin, int(high) + margin
    else:
        step = 10.0 ** math.floor(math.log10(span / 100))
        digits = max(0, -math.floor(math.log10(step)))
        low = round(math.floor((low - span * _MARGIN) / step) * step, digits)
        high = round(math.ceil((high + span * _MARGIN) / step) * step, digits)
    return (low if zero is None else max(zero, low)), high


def _is_number(kind: str) -> bool:
    return kind.startswith(("int", "uint", "float"))
