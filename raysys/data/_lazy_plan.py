"""The lazy plan of a Table's blocks: operations that one later task runs together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from raysys.data._polars import pl
from raysys.errors import DataError
from raysys.imports import lazy_import

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

plugins = lazy_import("polars.io.plugins")


# polars' message of a sum in 128 bits that does not fit the result; \x1f: see `_aggregate`.
_OVERFLOW = re.compile(r"conversion from `i128` to `([iu]64)` failed in column '([^'\x1f]*)")


class Part(Protocol):
    """A part of a file, read by the task that needs it."""

    @property
    def schema(self) -> pa.Schema:
        """Schema of all columns."""

    def read(
        self, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None
    ) -> pa.Table:
        """The rows with these columns or all; those that fail the predicate may be left out."""


@dataclass(frozen=True)
class LazyOperation:
    """A change of rows that needs no other block.

    Attributes:
        name: Name in messages and of tasks.
        function: `function(frame, *tables, *args)`, polars LazyFrames in and out.
        args: Further arguments.
        tables: Small Tables that every task reads.
        columns: The remaining columns, if the operation only selects.
    """

    name: str
    function: Callable[..., pl.LazyFrame]
    args: tuple[Any, ...] = ()
    tables: tuple[Any, ...] = ()
    columns: tuple[str, ...] | None = None

    def run(self, frame: pl.LazyFrame, tables: Sequence[pa.Table]) -> pl.LazyFrame:
        """Add the operation to a frame's plan."""
        return self.function(frame, *[lazy(table) for table in tables], *self.args)


def evaluate(source: pa.Table | Part, operations: Sequence[LazyOperation]) -> pa.Table:
    """A block: read what the operations need of the source, and run them."""
    columns = None
    while operations and operations[0].columns is not None:  # Arrow can do this as well
        columns, operations = operations[0].columns, operations[1:]
    if not operations:
        if not isinstance(source, pa.Table):
            return source.read(columns)
        return source if columns is None else source.select(list(columns))
    frame = lazy(source) if isinstance(source, pa.Table) else _scan(source)
    if columns is not None:
        frame = frame.select(columns)
    for operation in operations:
        frame = operation.run(frame, [table.to_arrow() for table in operation.tables])
    return collect(frame, operations[-1].name)


def planned_schema(schema: pa.Schema, operations: Sequence[LazyOperation]) -> pa.Schema:
    """The schema after the operations, inferred on no rows.

    Raises:
        DataError: An operation does not fit the columns.
    """
    for operation in operations:
        if operation.columns is not None:
            schema = pa.schema([schema.field(name) for name in operation.columns])
            continue
        try:
            frame = operation.run(
                lazy(schema.empty_table()), [t.schema.empty_table() for t in operation.tables]
            )
            schema = frame.collect().to_arrow().schema
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"{operation.name}: {str(error).splitlines()[0][:300]}; the table has the columns "
                f"{_listed(schema)}"
            ) from None
    return schema


def lazy(table: pa.Table) -> pl.LazyFrame:
    """A block as the start of a plan."""
    return frame_of(table).lazy()


def frame_of(table: pa.Table) -> pl.DataFrame:
    """A block as a polars frame, over the same memory but for text."""
    frame = pl.from_arrow(table, rechunk=False)
    assert isinstance(frame, pl.DataFrame)
    return frame


def collect(frame: pl.LazyFrame, what: str) -> pa.Table:
    """Run a plan.

    Raises:
        DataError: The plan does not apply to a value.
    """
    try:
        return frame.collect().to_arrow()
    except pl.exceptions.PolarsError as error:
        if overflow := _OVERFLOW.search(str(error)):
            kind, column = overflow.groups()
            raise DataError(
                f"{what}: the sum {column!r} is beyond {kind}. Convert the column to float64 before"
            ) from None
        raise DataError(f"{what}: {error}") from None


def _scan(part: Part) -> pl.LazyFrame:
    """A part from which polars' optimiser requests only the columns and rows that it needs."""

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, _: int | None
    ) -> Any:
        frame = frame_of(part.read(columns, predicate))
        if predicate is not None:
            frame = frame.filter(predicate)
        yield frame if rows is None else frame.head(rows)

    return plugins.register_io_source(read, schema=frame_of(part.schema.empty_table()).schema)


def _listed(schema: pa.Schema) -> str:
    names = schema.names
    return f"{names[:20]}" + (f" and {len(names) - 20} more" if len(names) > 20 else "")
