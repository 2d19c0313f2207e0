"""First rows and statistics of a Table, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from raysys.data._blocks import results, value_task
from raysys.data._lazy_plan import evaluate, frame_of
from raysys.data._shuffle import concat
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from raysys.data._table import Table


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
        if not (kind.is_numeric() or kind == pl.Boolean):
            values = [None if value is None else str(value) for value in values]
        else:
            values = [None if value is None else float(value) for value in values]
        columns[name] = values
    return pl.DataFrame(columns, strict=False)
