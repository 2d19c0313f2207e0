"""Blocks without some of their rows, which no task needs to copy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

_MAX_SLICES = 200  # beyond which one copy of the rows is cheaper than many slices


@dataclass(frozen=True)
class RemainingRows:
    """A block of which the task that reads it leaves rows out: a `Part` of a plan.

    Attributes:
        block: Reference to the block.
        removed: Reference to numbers of rows of a Table, ascending.
        first: Number of the block's first row in it.
        schema: Schema of the block.
    """

    block: Any
    removed: Any
    first: int
    schema: pa.Schema

    def read(
        self, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None
    ) -> pa.Table:
        """The remaining rows, over the block's memory if few are removed."""
        block, removed = ray.get([self.block, self.removed])
        rows = rows_of(removed, self.first, len(block))
        rest = without(block.select(list(columns)) if columns else block, rows)
        return rest if columns is None else rest.select(list(columns))


def rows_of(places: np.ndarray, first: int, rows: int) -> np.ndarray:
    """Those of a Table's row numbers, ascending, that lie in a block, counted in the block."""
    low, high = np.searchsorted(places, [first, first + rows])
    return places[low:high] - first


def without(block: pa.Table, rows: np.ndarray) -> pa.Table:
    """A block without the rows of these numbers, ascending."""
    if len(rows) > _MAX_SLICES:
        remaining = np.ones(len(block), bool)
        remaining[rows] = False
        return block.filter(pa.array(remaining))
    bounds = np.concatenate([[-1], rows, [len(block)]])
    slices = [block.slice(a + 1, b - a - 1) for a, b in itertools.pairwise(bounds)]
    return pa.concat_tables([part for part in slices if len(part)] or [block.slice(0, 0)])
