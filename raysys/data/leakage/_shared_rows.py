"""Rows in several splits, by an exchange of hashes between tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raysys.data._blocks import results, scatter, value_task
from raysys.data._lazy_plan import frame_of
from raysys.data._polars import pl
from raysys.data._row_hash import hash_rows
from raysys.data._row_numbers import numbered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.data._table import Table

_ENTRIES_A_TASK = 2_000_000
_EXAMPLES = 3


@dataclass(frozen=True)
class RowComparison:
    """Columns by which rows are compared; without `missing`, rows with a null are ignored."""

    columns: tuple[str, ...]
    missing: bool = False


@dataclass
class SharedRows:
    """Number of rows of a split that are in another one, and example pairs of row numbers."""

    rows: int = 0
    examples: list[tuple[int, int]] = field(default_factory=list)


def shared_rows(
    tables: Mapping[str, Table], comparisons: Sequence[RowComparison]
) -> dict[tuple[int, str, str], SharedRows]:
    """Rows of a split that are in another one, by comparison and ordered pair of splits.

    Each block sends its distinct keys, as two hashes of 64 bits, to the task of their part.
    """
    names = list(tables)
    rows = sum(len(table) for table in tables.values()) * len(comparisons)
    parts = 1 << min(6, max(0, (rows // _ENTRIES_A_TASK).bit_length()))
    calls = [
        (block, first, tuple(comparisons), number, parts)
        for number, table in enumerate(tables.values())
        for block, first in numbered(table)
    ]
    sent = scatter("leaks_hash_rows", parts, entries, calls)
    compare_task = value_task("leaks_compare_rows")
    overlaps = results([compare_task.remote(compare, *refs) for refs in zip(*sent, strict=True)])
    shared: dict[tuple[int, str, str], SharedRows] = {}
    for overlap in overlaps:
        for (comparison, a, b), part in overlap.items():
            total = shared.setdefault((comparison, names[a], names[b]), SharedRows())
            total.rows += part.rows
            pairs = sorted(total.examples + part.examples, key=lambda pair: (pair[1], pair[0]))
            total.examples = pairs[:_EXAMPLES]
    return shared


def entries(
    block: pa.Table, first: int, comparisons: Sequence[RowComparison], split: int, parts: int
) -> list[pa.Table]:
    """Distinct keys of a block: two hashes, number of rows and the first one; in parts by hash."""
    frames = []
    for number, comparison in enumerate(comparisons):
        high, low = (hash_rows(block, comparison.columns, seed) for seed in (0, 1))
        rows = pl.DataFrame({"high": high, "low": low, "row": np.arange(len(block)) + first})
        if not comparison.missing:
            present = [block[name].is_valid().to_numpy() for name in comparison.columns]
            rows = rows.filter(pl.Series(np.all(present, axis=0)))
        # Runs of sorted rows, which is faster than groups. Equal first hashes with unequal second
        # ones give extra keys, which are merged later.
        rows = rows.sort("high", maintain_order=True).with_row_index("start")
        keys = rows.filter(
            pl.any_horizontal(
                pl.col(name).ne_missing(pl.col(name).shift()) for name in ("high", "low")
            )
        )
        start = pl.col("start").cast(pl.Int64)
        count = start.shift(-1, fill_value=len(rows)) - start
        keys = keys.select("high", "low", "row", count.alias("rows"))
        place = {"comparison": number, "split": split}
        frames.append(keys.with_columns(pl.lit(n, pl.UInt16).alias(k) for k, n in place.items()))
    keys = pl.concat(frames).with_columns(part=pl.col("high") % parts)
    by_part = keys.partition_by("part", as_dict=True, include_key=False)
    empty = keys.drop("part").clear()
    return [by_part.get((part,), empty).to_arrow() for part in range(parts)]


def compare(*parts: pa.Table) -> dict[tuple[int, int, int], SharedRows]:
    """Shared rows by (comparison, first split, second split)."""
    key = ["comparison", "high", "low"]
    keys = frame_of(pa.concat_tables(parts)).sort("high")
    # Most keys are in one split: only the remaining ones are grouped.
    as_before = pl.col("high") == pl.col("high").shift()
    keys = keys.filter(as_before | as_before.shift(-1))
    keys = keys.group_by(*key, "split").agg(pl.col("rows").sum(), pl.col("row").min())
    pairs = keys.join(keys, on=key, suffix="_b").filter(pl.col("split") != pl.col("split_b"))
    overlaps = (
        pairs.sort("row_b", "row")
        .group_by("comparison", "split", "split_b", maintain_order=True)
        .agg(pl.col("rows_b").sum(), pl.col("row", "row_b").head(_EXAMPLES))
    )
    return {
        (comparison, a, b): SharedRows(rows, list(zip(first, second, strict=True)))
        for comparison, a, b, rows, first, second in overlaps.iter_rows()
    }
