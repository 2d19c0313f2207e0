"""A Table for people: its plan as text and HTML, first rows and statistics."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from raysys.data._blocks import results, value_task
from raysys.data._lazy_plan import evaluate, frame_of
from raysys.data._polars import pl
from raysys.data._shuffle import concat
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from raysys.data._planned_blocks import PlannedBlocks
    from raysys.data._table import Table

_MAX_COLUMNS = 20


def table_text(table: PlannedBlocks) -> str:
    """Size, plan and columns on one line."""
    fields = [f"{name}: {kind}" for name, kind in _fields(table)]
    return f"Table({_summary(table)}; {', '.join(fields)})"


def table_html(table: PlannedBlocks) -> str:
    """The same with a row for each column, for notebooks."""
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(kind)}</td></tr>"
        for name, kind in _fields(table)
    )
    heading = f"<b>Table</b> {html.escape(_summary(table))}"
    return f"{heading}<table><tr><th>column</th><th>type</th></tr>{cells}</table>"


def _summary(table: PlannedBlocks) -> str:
    rows = table.lineage.rows if table._metas is None else len(table)
    parts = ["rows unknown" if rows is None else f"{rows} rows", f"{len(table._sources)} blocks"]
    if table._metas is None:
        names = [operation.name for operation in table._operations]
        parts.append(f"planned: {' > '.join(names or ['read'])}")
    return ", ".join(parts)


def _fields(table: PlannedBlocks) -> list[tuple[str, str]]:
    fields = [(field.name, str(field.type)) for field in table.schema]
    more = len(fields) - _MAX_COLUMNS
    return [*fields[:_MAX_COLUMNS], *([("...", f"{more} more")] if more > 0 else [])]


def head(table: Table, rows: int) -> pl.DataFrame:
    """The first rows, from as few blocks as have them."""
    if rows < 0:
        raise DataError(f"head: rows={rows}; give 0 or more")
    first, missing = [table.schema.empty_table()], rows
    task = value_task("head")
    for source in table._sources:
        if not missing:
            break
        first += results([task.remote(_first_rows, source, table._operations, missing)])
        missing -= len(first[-1])
    return frame_of(concat(*first))


def _first_rows(source: Any, operations: Sequence[Any], rows: int) -> pa.Table:
    return evaluate(source, operations).slice(0, rows).combine_chunks()


def describe(table: Table) -> pl.DataFrame:
    """Statistics of each column that has an order, a row for each statistic."""
    kinds = frame_of(table.schema.empty_table()).schema
    aggregates: dict[str, tuple[str, str]] = {}
    for name, kind in kinds.items():
        numeric = kind.is_numeric() or kind == pl.Boolean
        ordered = numeric or kind.is_temporal() or kind == pl.String
        aggregates[f"{name}/count"] = (name, "count")
        if numeric and not kind.is_decimal():
            aggregates |= {f"{name}/{f}": (name, f) for f in ("mean", "std")}
        if ordered:
            aggregates |= {f"{name}/{f}": (name, f) for f in ("min", "max")}
    (row,) = table.aggregate(size="rows", **aggregates).to_arrow().to_pylist()
    columns: dict[str, list[Any]] = {
        "statistic": ["count", "null_count", "mean", "std", "min", "max"]
    }
    for name, kind in kinds.items():
        count, *values = (row.get(f"{name}/{f}") for f in ("count", "mean", "std", "min", "max"))
        values = [count, row["size"] - count, *values]
        shown: Any = float if kind.is_numeric() or kind == pl.Boolean else str
        columns[name] = [None if value is None else shown(value) for value in values]
    return pl.DataFrame(columns, strict=False)
