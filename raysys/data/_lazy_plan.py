"""What is yet to be done to a Table's blocks: steps that a later task does in one go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raysys.data._table import Table


class Part(Protocol):
    """A part of a file, read by the task that needs it."""

    @property
    def schema(self) -> pa.Schema:
        """Of what `read` gives without a choice of columns."""

    def read(
        self, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None
    ) -> pa.Table:
        """The rows with these columns or all; those that fail the predicate may be left out."""


@dataclass(frozen=True)
class Step:
    """A change of rows that needs no other block.

    Attributes:
        name: For messages.
        function: `function(frame, *tables, *args)`, polars LazyFrames in and out.
        tables: Small ones, that every task needs whole.
        columns: Those that are left, if the step does nothing else.
    """

    name: str
    function: Callable[..., pl.LazyFrame]
    args: tuple[Any, ...] = ()
    tables: tuple[Table, ...] = ()
    columns: tuple[str, ...] | None = None

    def run(self, frame: pl.LazyFrame, others: Sequence[pa.Table]) -> pl.LazyFrame:
        """Add the step to a frame's plan."""
        return self.function(frame, *[lazy(other) for other in others], *self.args)


def evaluate(source: pa.Table | Part, steps: Sequence[Step]) -> pa.Table:
    """A block: read what the steps need of the source, and do them."""
    columns = None
    while steps and steps[0].columns is not None:  # Arrow can do this as well
        columns, steps = steps[0].columns, steps[1:]
    if not steps:
        if not isinstance(source, pa.Table):
            return source.read(columns)
        return source if columns is None else source.select(list(columns))
    frame = lazy(source) if isinstance(source, pa.Table) else _scan(source)
    if columns is not None:
        frame = frame.select(columns)
    for step in steps:
        frame = step.run(frame, [table.to_arrow() for table in step.tables])
    return collect(frame, steps[-1].name)


def planned_schema(schema: pa.Schema, steps: Sequence[Step]) -> pa.Schema:
    """The schema after the steps, found on no rows.

    Raises:
        DataError: A step does not fit the columns.
    """
    for step in steps:
        if step.columns is not None:
            schema = pa.schema([schema.field(name) for name in step.columns])
            continue
        try:
            frame = step.run(
                lazy(schema.empty_table()), [t.schema.empty_table() for t in step.tables]
            )
            schema = frame.collect().to_arrow().schema
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"{step.name}: {str(error).splitlines()[0][:300]}; the table has the columns "
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
        DataError: A value cannot be worked with as the plan wants.
    """
    try:
        return frame.collect().to_arrow()
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{what}: {error}") from None


def _scan(part: Part) -> pl.LazyFrame:
    """A part that polars' optimiser tells which columns and rows it needs."""

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, _: int | None
    ) -> Any:
        frame = frame_of(part.read(columns, predicate))
        if predicate is not None:
            frame = frame.filter(predicate)
        yield frame if rows is None else frame.head(rows)

    return register_io_source(read, schema=frame_of(part.schema.empty_table()).schema)


def _listed(schema: pa.Schema) -> str:
    names = schema.names
    return f"{names[:20]}" + (f" and {len(names) - 20} more" if len(names) > 20 else "")
