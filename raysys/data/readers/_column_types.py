"""The types that columns of files get, and the columns that say where a row comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.data.readers._files import File

# Where a row stood, and the text of a line that is no row: columns of raw tables.
FILE, ROW, MALFORMED = "_file", "_row", "_malformed"
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class FormatPart:
    """A part of a file whose format has types.

    Attributes:
        file: Where.
        columns: Columns and types of the Table, those of the file's folders too.
        raw: Whether to say where each row stood.
    """

    file: File
    columns: pa.Schema
    raw: bool

    @property
    def schema(self) -> pa.Schema:
        """Of what `read` gives without a choice of columns."""
        return with_origin(self.columns) if self.raw else self.columns


def normal_type(kind: pa.DataType) -> pa.DataType:
    """One type for each kind of value, so that files of several writers fit together."""
    if pa.types.is_string(kind) or pa.types.is_null(kind) or pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("us", tz=kind.tz)  # polars knows no seconds
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(normal_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(one.name, normal_type(one.type)) for one in kind])
    return kind


def as_lists(one: pa.DataType, other: pa.DataType) -> list[pa.DataType]:
    """Two types, of which one is no longer of lists of a fixed size if the other is not."""
    fixed = [pa.types.is_fixed_size_list(kind) for kind in (one, other)]
    lists = [pa.types.is_large_list(kind) for kind in (one, other)]
    if not (any(fixed) and any(lists)):
        return [one, other]
    return [normal_type(pa.list_(kind.value_type)) for kind in (one, other)]


def with_text_types(schema: pa.Schema) -> pa.Schema:
    """All columns as text."""
    return pa.schema([pa.field(name, pa.large_string()) for name in schema.names])


def with_origin(schema: pa.Schema) -> pa.Schema:
    """With the columns of a raw table."""
    origin = [
        pa.field(FILE, pa.dictionary(pa.int32(), pa.string())),
        pa.field(ROW, pa.int64()),
        pa.field(MALFORMED, pa.large_string()),
    ]
    return pa.schema([*schema, *origin])


def in_order(
    table: pa.Table,
    schema: pa.Schema,
    names: Sequence[str] | None,
    keys: Mapping[str, str] | None = None,
) -> pa.Table:
    """The table's columns as the schema has them: order and types.

    Args:
        table: What was read.
        schema: Of all columns.
        names: Those wanted; all by default.
        keys: Values of the columns that stand in the file's path. Others that are missing are
            null.
    """
    held, keys = set(table.column_names), keys or {}
    chosen = schema.names if names is None else list(names)
    if not chosen:
        return table.select([])  # which keeps the number of rows
    made = []
    for name in chosen:
        kind = schema.field(name).type
        if name in held:
            made.append(table[name].cast(kind))
        elif keys.get(name, NO_VALUE) == NO_VALUE:
            made.append(pa.nulls(len(table), kind))
        else:
            made.append(pa.repeat(pa.array([keys[name]]).cast(kind)[0], len(table)))
    return pa.table(made, schema=pa.schema([schema.field(name) for name in chosen]))


def repeated(name: str, count: int) -> pa.DictionaryArray:
    """One text for each of so many rows."""
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([name]))


def with_rows(
    table: pa.Table, name: str, first_row: int, malformed: list[tuple[int, str]]
) -> pa.Table:
    """With the columns that say where each row stood; malformed lines at their places."""
    count = len(table) + len(malformed)
    out = np.array([row for row, _ in malformed], np.int64)
    rows = np.setdiff1d(np.arange(count), out)
    texts = pa.table({MALFORMED: pa.array([text for _, text in malformed], pa.large_string())})
    whole = pa.concat_tables([table, texts], promote_options="default")
    numbers = np.concatenate([rows, out]) + first_row
    whole = whole.append_column(FILE, repeated(name, count))
    whole = whole.append_column(ROW, pa.array(numbers, pa.int64()))
    return whole.take(np.argsort(numbers, kind="stable")) if malformed else whole
