"""Parquet and Arrow files: what is in them, and reading a part."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysys.data._blocks import BLOCK_BYTES
from raysys.data._lazy_plan import frame_of
from raysys.data.readers._column_types import FormatPart, in_order, with_rows
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from raysys.data.readers._files import File


@dataclass(frozen=True)
class ParquetPart(FormatPart):
    """Row groups of a file."""

    groups: tuple[int, ...]
    first_row: int = 0

    def read(
        self, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None
    ) -> pa.Table:
        """Read the columns; of row groups where no row passes the predicate, its columns only."""
        names = self.schema.names if columns is None else list(columns)
        try:
            with self.file.open() as stream:
                source = pq.ParquetFile(stream)
                if predicate is None or self.raw:
                    table = self._rows(source, self.groups, names)
                else:
                    table = self._passing(source, names, predicate)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.file.name}: cannot be read as Parquet: {error}") from error
        if self.raw:
            table = in_order(
                with_rows(table, self.file.name, self.first_row, []),
                self.schema,
                names,
                self.file.keys(),
            )
        return table

    def _passing(self, source: Any, names: list[str], predicate: pl.Expr) -> pa.Table:
        """Rows of the groups in which some pass."""
        needed = list(dict.fromkeys(predicate.meta.root_names()))
        rest = [name for name in names if name not in needed]
        found = [in_order(self.columns.empty_table(), self.columns, names)]
        for group in self.groups:
            tested = self._rows(source, (group,), needed)
            if not frame_of(tested).select(predicate.any()).item():
                continue
            others = self._rows(source, (group,), rest) if rest else tested
            columns = [(tested if name in needed else others)[name] for name in names]
            found.append(pa.table(columns, schema=found[0].schema))
        return pa.concat_tables(found)

    def _rows(self, source: Any, groups: Sequence[int], names: Sequence[str]) -> pa.Table:
        chosen = [name for name in names if name in self.columns.names]
        inside = [name for name in chosen if name in source.schema_arrow.names]
        table = source.read_row_groups(list(groups), columns=inside, use_threads=False)
        return in_order(table, self.columns, chosen, self.file.keys())


@dataclass(frozen=True)
class ArrowPart(FormatPart):
    """Record batches of an Arrow (IPC, Feather) file."""

    batches: tuple[int, ...]
    first_row: int = 0

    def read(
        self, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None
    ) -> pa.Table:
        """Read the columns of the batches."""
        names = self.schema.names if columns is None else columns
        try:
            with self.file.open() as stream:
                inside = pa.ipc.open_file(stream).schema.names
                numbers = [n for n, name in enumerate(inside) if name in names] or [0]
                options = pa.ipc.IpcReadOptions(included_fields=numbers)
                source = pa.ipc.open_file(stream, options=options)
                made = [source.get_batch(number) for number in self.batches]
                table = pa.Table.from_batches(made, source.schema)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.file.name}: cannot be read as Arrow: {error}") from error
        if self.raw:
            table = with_rows(table, self.file.name, self.first_row, [])
        return in_order(table, self.schema, names, self.file.keys())


def parquet_parts(file: File, raw: bool) -> list[ParquetPart]:
    """A file as parts of about a block's size, of whole row groups."""
    try:
        with file.open() as stream:
            source = pq.ParquetFile(stream)
            schema, about = _columns_of(file, source.schema_arrow), source.metadata
            sizes = [about.row_group(n).total_byte_size for n in range(about.num_row_groups)]
            rows = [about.row_group(n).num_rows for n in range(about.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file.name}: cannot be read as Parquet, it may be truncated: {error}"
        ) from error
    groups = _gathered(sizes)
    firsts = [sum(rows[: group[0]]) for group in groups]
    return [ParquetPart(file, schema, raw, g, f) for g, f in zip(groups, firsts, strict=True)] or [
        ParquetPart(file, schema, raw, ())
    ]


def arrow_parts(file: File, raw: bool) -> list[ArrowPart]:
    """A file as parts of about a block's size, of whole record batches."""
    try:
        with file.open() as stream:
            source = pa.ipc.open_file(stream)
            schema = _columns_of(file, source.schema)
            # One column says how many rows there are.
            first = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(included_fields=[0]))
            rows = [first.get_batch(number).num_rows for number in range(first.num_record_batches)]
            sizes = [file.size * count // max(1, sum(rows)) for count in rows]
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file.name}: cannot be read as an Arrow file, it may be truncated: {error}"
        ) from error
    groups = _gathered(sizes)
    firsts = [sum(rows[: group[0]]) for group in groups]
    return [ArrowPart(file, schema, raw, g, f) for g, f in zip(groups, firsts, strict=True)] or [
        ArrowPart(file, schema, raw, ())
    ]


def _gathered(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Consecutive numbers whose sizes make up about a block."""
    groups: list[list[int]] = []
    filled = BLOCK_BYTES
    for number, size in enumerate(sizes):
        if filled + size > BLOCK_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += size
    return [tuple(group) for group in groups]


def _columns_of(file: File, schema: pa.Schema) -> pa.Schema:
    if len(set(schema.names)) < len(schema.names):
        repeated = [name for name, count in Counter(schema.names).items() if count > 1]
        raise DataError(f"{file.name}: the columns {repeated[:5]} stand in it twice")
    return schema
