"""Types of columns of files, and the columns of raw tables for the origin of rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from raysys.data._supported_types import convert
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from raysys.data.readers._files import File

# Columns of raw tables: file of a row, its first line (from 1, as an editor counts) or, in formats
# without lines, its number (from 0); and the text of a malformed line.
FILE, LINE, ROW, MALFORMED = "_file", "_line", "_row", "_malformed"
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class FormatPart:
    """A part of a file in a typed format.

    Attributes:
        file: The file.
        columns: Columns and types of the Table, including those of the file's folders.
        raw: Whether to add the origin of each row.
    """

    place: ClassVar[str] = ROW
    file: File
    columns: pa.Schema
    raw: bool

    @property
    def schema(self) -> pa.Schema:
        """Schema of `read` without a selection of columns."""
        return with_origin(self.columns, self.place) if self.raw else self.columns

    def finish(
        self,
        table: pa.Table,
        names: Sequence[str] | None,
        places: np.ndarray,
        malformed: Sequence[tuple[int, str]] = (),
    ) -> pa.Table:
        """Rows that were read, with their origin if `raw`, as the schema's columns."""
        if self.raw:
            table = with_places(table, self.file.name, self.place, places, malformed)
        return in_order(table, self.schema, names, self.file)


def normal_type(kind: pa.DataType) -> pa.DataType:
    """One type per kind of value, so that files of several writers have the same types."""
    if pa.types.is_string(kind) or pa.types.is_null(kind) or pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("us", tz=kind.tz)  # polars has no seconds
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(normal_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, normal_type(f.type)) for f in kind])
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is one of text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def as_lists(kinds: Sequence[pa.DataType]) -> list[pa.DataType]:
    """Types, without lists of a fixed size if they are mixed with lists of any size."""
    tests = pa.types.is_fixed_size_list, pa.types.is_large_list
    if not all(any(map(test, kinds)) for test in tests):
        return list(kinds)
    return [normal_type(pa.list_(kind.value_type)) for kind in kinds]


def text_schema(names: Iterable[str]) -> pa.Schema:
    """Columns of text."""
    return pa.schema([pa.field(name, pa.large_string()) for name in names])


def with_origin(schema: pa.Schema, place: str) -> pa.Schema:
    """A schema with the origin columns of a raw table; `place` is `_line` or `_row`."""
    origin = [
        pa.field(FILE, pa.dictionary(pa.int32(), pa.string())),
        pa.field(place, pa.int64()),
        pa.field(MALFORMED, pa.large_string()),
    ]
    return pa.schema([*schema, *origin])


def in_order(
    table: pa.Table, schema: pa.Schema, names: Sequence[str] | None, file: File | None = None
) -> pa.Table:
    """Some or all columns of a schema, with the values of a table or of its file's folders.

    All other columns are null.

    Raises:
        DataError: A value does not fit the column's type, which files share.
    """
    present, keys = set(table.column_names), file.keys() if file else {}
    selected = schema.names if names is None else list(names)
    if not selected:
        return table.select([])  # keeps the number of rows
    columns = []
    for name in selected:
        kind = schema.field(name).type
        if name in present:
            where = f"{file.name}: " if file else ""
            columns.append(convert(table[name], kind, f"{where}column {name!r}"))
        elif keys.get(name, NO_VALUE) == NO_VALUE:
            columns.append(pa.nulls(len(table), kind))
        else:
            columns.append(pa.repeat(pa.array([keys[name]]).cast(kind)[0], len(table)))
    return pa.table(columns, schema=pa.schema([schema.field(name) for name in selected]))


def require_unique(file: File, names: Sequence[str]) -> None:
    """Raise a DataError for duplicate columns."""
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{file.name}: duplicate columns {duplicates[:5]}. Rename them")


def repeated(name: str, count: int) -> pa.DictionaryArray:
    """A text in each of `count` rows."""
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([name]))


def place_column(names: Iterable[str]) -> str:
    """The column of a table that says where in its file a row stands: `_line`, or else `_row`."""
    return LINE if LINE in names else ROW


def with_places(
    table: pa.Table,
    name: str,
    place: str,
    places: np.ndarray,
    malformed: Sequence[tuple[int, str]] = (),
) -> pa.Table:
    """A table with origin columns, and with malformed lines at their places."""
    texts = pa.table({MALFORMED: pa.array([text for _, text in malformed], pa.large_string())})
    table = pa.concat_tables([table, texts], promote_options="default")
    places = np.concatenate([places, np.array([n for n, _ in malformed], np.int64)])
    table = table.append_column(FILE, repeated(name, len(places)))
    table = table.append_column(place, pa.array(places, pa.int64()))
    return table.take(np.argsort(places, kind="stable")) if malformed else table
