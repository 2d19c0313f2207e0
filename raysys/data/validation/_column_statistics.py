"""Exact statistics of columns over all blocks, computed by tasks."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysys.data._order_statistics import values_at_ranks
from raysys.data._polars import pl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from raysys.data._table import Table


def statistics(table: Table, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Statistics of each column over all rows, exact (sums are of floats).

    Returns:
        By column `rows`, `nulls`, `null_share`, `min`, `max` and `mean`; the last three are None
        for types other than numbers, booleans, dates and times, and for columns without values.
        Dates and times are int64 counts of their unit.
    """
    parts = table.gather(_partial, list(columns), name="statistics")
    merged = {}
    for name in columns:
        rows, nulls = (sum(part[name][key] for part in parts) for key in ("rows", "nulls"))
        stats = {"rows": rows, "nulls": nulls, "null_share": nulls / rows if rows else 0.0}
        with_values = [part[name] for part in parts if part[name]["min"] is not None]
        stats["min"] = min((part["min"] for part in with_values), default=None)
        stats["max"] = max((part["max"] for part in with_values), default=None)
        total = sum(part["sum"] for part in with_values)
        stats["mean"] = total / (rows - nulls) if with_values else None
        merged[name] = stats
    return merged


def medians(table: Table, stats: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Median of each column of `statistics`; None without a value."""
    counts = {name: column["rows"] - column["nulls"] for name, column in stats.items()}
    ranks = {name: [(count - 1) // 2, count // 2] for name, count in counts.items() if count}
    middle = order_statistics(table, ranks)
    return {name: float(sum(middle[name]) / 2) if name in middle else None for name in stats}


def order_statistics(
    table: Table, ranks: Mapping[str, Sequence[int]]
) -> dict[str, list[int | float]]:
    """Values at ranks, counted from 0, of each column."""
    gather = functools.partial(table.gather, name="order_statistics")
    kinds = {name: _wide_type(table.schema.field(name).type) for name in ranks}
    return values_at_ranks(gather, _present, ranks, kinds)


def _wide_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_floating(kind):
        return pa.float64()
    return pa.uint64() if pa.types.is_unsigned_integer(kind) else pa.int64()


def _present(block: pa.Table, name: str) -> np.ndarray:
    values = numbers(block, name)
    assert values is not None
    return values.to_numpy()


def numbers(block: pa.Table, name: str) -> pl.Series | None:
    """A column as numbers without missing values; None for types that are not numeric."""
    values = pl.Series(name, block[name]).drop_nulls()
    if values.dtype.is_temporal():
        return values.to_physical().cast(pl.Int64)
    if values.dtype == pl.Boolean:
        return values.cast(pl.Int64)
    return values.drop_nans() if values.dtype.is_numeric() else None


def _partial(block: pa.Table, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    stats = {}
    for name in columns:
        values = numbers(block, name)
        missing = block[name].null_count if values is None else len(block) - len(values)
        stats[name] = {"rows": len(block), "nulls": missing, "min": None, "max": None, "sum": 0.0}
        if values is not None and len(values):
            mean: Any = values.mean()  # the sum of integers could overflow
            total = mean * len(values)
            stats[name] |= {"min": values.min(), "max": values.max(), "sum": total}
    return stats
