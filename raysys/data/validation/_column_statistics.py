"""Statistics of columns over all blocks, exact and by tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from raysys.data._table import Table

_GRID = 4096  # values of a sorted block that stand for it when a rank is looked for


def statistics(table: Table, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each column, over all rows, and exactly (sums are of floats).

    Returns:
        `rows`, `nulls`, `null_share`; and of columns of numbers, booleans, dates and times
        `min`, `max`, `mean`, None where there is no value: dates and times as int64 counts of
        their unit.
    """
    parts = table.gather(_partial, list(columns), name="statistics")
    found = {}
    for name in columns:
        rows, nulls = (sum(part[name][key] for part in parts) for key in ("rows", "nulls"))
        stats = {"rows": rows, "nulls": nulls, "null_share": nulls / rows if rows else 0.0}
        with_values = [part[name] for part in parts if part[name]["min"] is not None]
        stats["min"] = min((part["min"] for part in with_values), default=None)
        stats["max"] = max((part["max"] for part in with_values), default=None)
        total = sum(part["sum"] for part in with_values)
        stats["mean"] = total / (rows - nulls) if with_values else None
        found[name] = stats
    return found


def medians(table: Table, columns: Sequence[str]) -> dict[str, Any]:
    """The middle value of each column, or the mean of the two; None without a value."""
    counts = {name: stats["rows"] - stats["nulls"]
              for name, stats in statistics(table, columns).items()}  # fmt: skip
    ranks = {name: [(n - 1) // 2, n // 2] for name, n in counts.items() if n}
    found = order_statistics(table, ranks)
    return {name: None if name not in found else float(sum(found[name]) / 2) for name in columns}


def order_statistics(
    table: Table, ranks: Mapping[str, Sequence[int]]
) -> dict[str, list[int | float]]:
    """The values of these ranks, from 0, among each column's values in their order.

    Two passes: a grid of each sorted block's values gives bounds of any value's rank, hence two
    values that enclose the one that is looked for; then the few values between them are counted.
    Exact, whatever the blocks.
    """
    if not ranks:
        return {}
    grids = table.gather(_grids, list(ranks), name="ranks_grid")
    brackets = {name: [_bracket([g[name] for g in grids], rank) for rank in ranks[name]]
                for name in ranks}  # fmt: skip
    counts = table.gather(_between, brackets, name="ranks_count")
    return {
        name: [
            _select([part[name][number] for part in counts], rank)
            for number, rank in enumerate(ranks[name])
        ]
        for name in ranks
    }


def numbers(block: pa.Table, name: str) -> pl.Series | None:
    """A column as numbers without missing values; None if it is of no such kind."""
    values = pl.Series(name, block[name]).drop_nulls()
    if values.dtype.is_temporal():
        return values.to_physical().cast(pl.Int64)
    if values.dtype == pl.Boolean:
        return values.cast(pl.Int64)
    return values.drop_nans() if values.dtype.is_numeric() else None


def _partial(block: pa.Table, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in columns:
        values = numbers(block, name)
        missing = block[name].null_count if values is None else len(block) - len(values)
        found[name] = {"rows": len(block), "nulls": missing, "min": None, "max": None, "sum": 0.0}
        if values is not None and len(values):
            mean: Any = values.mean()  # the sum of integers could overflow
            found[name] |= {
                "min": values.min(), "max": values.max(), "sum": mean * len(values)
            }  # fmt: skip
    return found


def _grids(block: pa.Table, columns: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each column some of its values in their order, ends included, and their places in it."""
    found = {}
    for name in columns:
        values = numbers(block, name)
        assert values is not None
        ordered = values.sort().to_numpy()
        places = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _GRID)).astype(int))
        found[name] = (ordered[places] if len(ordered) else ordered, places)
    return found


def _bracket(grids: Sequence[tuple[np.ndarray, np.ndarray]], rank: int) -> tuple[Any, Any]:
    """Two values with the one of this rank between them."""
    tried = np.unique(np.concatenate([values for values, _ in grids]))
    tried = tried[np.unique(np.linspace(0, len(tried) - 1, min(len(tried), _GRID)).astype(int))]
    below, upto = np.zeros(len(tried), np.int64), np.zeros(len(tried), np.int64)
    for values, places in grids:
        if not len(values):
            continue
        # At most so many of the block's values are below the one tried: all before the first of
        # the grid that is not. At least so many are at or below it: to the last of the grid.
        bounds = np.concatenate([[0], places[:-1] + 1, [places[-1] + 1]])
        left = np.searchsorted(values, tried, "left")
        below += np.where(left == 0, 0, np.append(places, places[-1] + 1)[left])
        upto += bounds[np.searchsorted(values, tried, "right")]
    low = tried[np.flatnonzero(below <= rank)[-1]]
    high = tried[np.flatnonzero(upto > rank)[0]]
    return low.item(), high.item()


def _between(
    block: pa.Table, brackets: Mapping[str, Sequence[tuple[Any, Any]]]
) -> dict[str, list[tuple[int, np.ndarray, np.ndarray]]]:
    """Of each bracket the number of values below it, and the values in it with their counts."""
    found = {}
    for name, pairs in brackets.items():
        values = numbers(block, name)
        assert values is not None
        array = values.to_numpy()
        found[name] = [
            (int((array < low).sum()), *np.unique(array[(array >= low) & (array <= high)],
                                                  return_counts=True))
            for low, high in pairs
        ]  # fmt: skip
    return found


def _select(parts: Sequence[tuple[int, np.ndarray, np.ndarray]], rank: int) -> int | float:
    below = sum(part[0] for part in parts)
    values = np.concatenate([part[1] for part in parts])
    counts = np.concatenate([part[2] for part in parts])
    order = np.argsort(values, kind="stable")
    reached = below + np.cumsum(counts[order])
    return values[order][np.searchsorted(reached, rank, "right")].item()
