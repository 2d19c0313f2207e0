"""The types that columns of files get, and the columns that say where a row comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

# Where a row stood, and the text of a line that is no row: columns of raw tables.
FILE, ROW, MALFORMED = "_file", "_row", "_malformed"


def normal_type(kind: pa.DataType) -> pa.DataType:
    """One type for each kind of value, so that files of several writers fit together."""
    import pyarrow as pa

    if pa.types.is_string(kind) or pa.types.is_null(kind) or pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("us", tz=kind.tz)  # polars knows no seconds
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(normal_type(kind.value_type))
    return kind


def normal_schema(schema: pa.Schema) -> pa.Schema:
    """Columns with normal types, without the writer's metadata."""
    import pyarrow as pa

    return pa.schema([pa.field(field.name, normal_type(field.type)) for field in schema])


def with_text_types(schema: pa.Schema) -> pa.Schema:
    """All columns as text."""
    import pyarrow as pa

    return pa.schema([pa.field(name, pa.large_string()) for name in schema.names])


def with_origin(schema: pa.Schema) -> pa.Schema:
    """With the columns of a raw table."""
    import pyarrow as pa

    origin = [
        pa.field(FILE, pa.dictionary(pa.int32(), pa.string())),
        pa.field(ROW, pa.int64()),
        pa.field(MALFORMED, pa.large_string()),
    ]
    return pa.schema([*schema, *origin])


def in_order(table: pa.Table, schema: pa.Schema, names: Sequence[str] | None) -> pa.Table:
    """The table's columns as the schema has them: order, types; missing ones as nulls."""
    import pyarrow as pa

    chosen = schema.names if names is None else names
    made = [
        table[name].cast(schema.field(name).type)
        if name in table.column_names
        else pa.nulls(len(table), schema.field(name).type)
        for name in chosen
    ]
    return pa.table(made, schema=pa.schema([schema.field(name) for name in chosen]))
