"""Parquet and Arrow files: columns and parts of a file, and reading of a part."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.data._blocks import BLOCK_BYTES
from raysys.data._lazy_plan import frame_of
from raysys.data.readers._column_types import FormatPart, in_order, require_unique
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import polars as pl

    from raysys.data.readers._files import File


@dataclass(frozen=True)
class ParquetPart(FormatPart):
    """Row groups of a file, from the row `first_row`."""

    groups: tuple[int, ...]
    first_row: int = 0

    def read(
        self, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None
    ) -> pa.Table:
        """Read the columns; of row groups without a passing row, the predicate's columns only."""
        names = self.schema.names if columns is None else list(columns)
        with _opened(self.file, "Parquet") as stream:
            source = pq.ParquetFile(stream)
            if predicate is None or self.raw:
                table = self._rows(source, self.groups, names)
            else:
                table = self._passing(source, names, predicate)
        if not self.raw:
            return table
        return self.finish(table, names, self.first_row + np.arange(len(table)))

    def _passing(self, source: Any, names: list[str], predicate: pl.Expr) -> pa.Table:
        """Rows of the groups with a passing row."""
        needed = list(dict.fromkeys(predicate.meta.root_names()))
        remaining = [name for name in names if name not in needed]
        tables = [in_order(self.columns.empty_table(), self.columns, names)]
        for group in self.groups:
            tested = self._rows(source, (group,), needed)
            if not frame_of(tested).select(predicate.any()).item():
                continue
            untested = self._rows(source, (group,), remaining) if remaining else tested
            columns = [(tested if name in needed else untested)[name] for name in names]
            tables.append(pa.table(columns, schema=tables[0].schema))
        return pa.concat_tables(tables)

    def _rows(self, source: Any, groups: Sequence[int], names: Sequence[str]) -> pa.Table:
        chosen = [name for name in names if name in self.columns.names]
        inside = [name for name in chosen if name in source.schema_arrow.names]
        table = source.read_row_groups(list(groups), columns=inside, use_threads=False)
        return in_order(table, self.columns, chosen, self.file)


@dataclass(frozen=True)
class ArrowPart(FormatPart):
    """Record batches of an Arrow (IPC, Feather) file, from the row `first_row`."""

    batches: tuple[int, ...]
    first_row: int = 0

    def read(
        self, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None
    ) -> pa.Table:
        """Read the columns of the batches."""
        names = self.schema.names if columns is None else columns
        with _opened(self.file, "Arrow") as stream:
            inside = pa.ipc.open_file(stream).schema.names
            numbers = [n for n, name in enumerate(inside) if name in names] or [0]
            options = pa.ipc.IpcReadOptions(included_fields=numbers)
            source = pa.ipc.open_file(stream, options=options)
            batches = [source.get_batch(number) for number in self.batches]
            table = pa.Table.from_batches(batches, source.schema)
        return self.finish(table, names, self.first_row + np.arange(len(table)))


def parquet_parts(file: File, raw: bool) -> list[ParquetPart]:
    """A file as parts of about a block's size, each of complete row groups."""
    with _opened(file, "Parquet") as stream:
        source = pq.ParquetFile(stream)
        schema, metadata = source.schema_arrow, source.metadata
        groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
        sizes = [group.total_byte_size for group in groups]
        rows = [group.num_rows for group in groups]
    require_unique(file, schema.names)
    return [
        ParquetPart(file, schema, raw, numbers, first)
        for numbers, first in _block_sized(sizes, rows)
    ]


def arrow_parts(file: File, raw: bool) -> list[ArrowPart]:
    """A file as parts of about a block's size, each of complete record batches."""
    with _opened(file, "Arrow") as stream:
        schema = pa.ipc.open_file(stream).schema
        # One column suffices to count rows.
        source = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(included_fields=[0]))
        rows = [source.get_batch(number).num_rows for number in range(source.num_record_batches)]
        sizes = [file.size * count // max(1, sum(rows)) for count in rows]
    require_unique(file, schema.names)
    return [
        ArrowPart(file, schema, raw, numbers, first) for numbers, first in _block_sized(sizes, rows)
    ]


@contextmanager
def _opened(file: File, kind: str) -> Iterator[Any]:
    """The file's stream; errors of the file system and the format become a DataError."""
    try:
        with file.open() as stream:
            yield stream
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file.name}: cannot be read as {kind}, the file may be truncated: {error}"
        ) from error


def _block_sized(sizes: Sequence[int], rows: Sequence[int]) -> list[tuple[tuple[int, ...], int]]:
    """Consecutive numbers of about a block's size, each with its first row; at least one."""
    groups: list[list[int]] = []
    filled = BLOCK_BYTES
    for number, size in enumerate(sizes):
        if filled + size > BLOCK_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += size
    return [(tuple(group), sum(rows[: group[0]])) for group in groups] or [((), 0)]
