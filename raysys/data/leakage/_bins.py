"""Bins for counting the values of a column, from the training split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data._blocks import results, value_task
from raysys.data._row_hash import hash_rows
from raysys.data._row_numbers import numbered
from raysys.data.sampling._sample import sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data._table import Table

# Bins of numbers have equally many rows of the training split, and enough for an estimate.
_NUMBER_BINS, _ROWS_A_BIN = 256, 20
# Categories with a bin of their own, the most frequent ones; the remaining ones share a bin.
_CATEGORY_BINS = 512
# Sample of the training split that defines the bins.
_SAMPLE = 50_000


@dataclass(frozen=True)
class LeakBins:
    """Bins of a column: the first for missing values, the last for all above or unlisted.

    Attributes:
        column: Name of the column.
        number: Whether the values are numbers or times, not categories.
        edges: Upper edges, inclusive, float64; or hashes of categories, uint64.
    """

    column: str
    number: bool
    edges: np.ndarray

    @property
    def count(self) -> int:
        """Number of bins."""
        return len(self.edges) + 2

    def of(self, block: pa.Table) -> np.ndarray:
        """The bin of each row, int64 `(rows,)`."""
        if self.number:
            values = as_numbers(block[self.column])
            return np.where(np.isnan(values), 0, 1 + np.searchsorted(self.edges, values))
        hashes = hash_rows(block, [self.column])
        at = np.searchsorted(self.edges, hashes)
        bins = np.full(len(hashes), self.count - 1)
        if len(self.edges):
            listed = self.edges[np.minimum(at, len(self.edges) - 1)] == hashes
            bins[listed] = 1 + at[listed]
        return np.where(block[self.column].is_null().to_numpy(), 0, bins)


def make_bins(train: Table, columns: Sequence[str], seed: int = 0) -> list[LeakBins]:
    """Bins of each column, from a sample of the training split in one task."""
    if not columns:
        return []
    schema = train.schema
    numbers = [is_number(schema.field(name).type) for name in columns]
    drawn = sample(train.select(list(columns)), min(_SAMPLE, len(train)), seed=seed)
    task = value_task("leaks_bins")
    edges = results(
        [task.remote(edges_of, list(columns), numbers, *(block for block, _ in numbered(drawn)))]
    )[0]
    return [LeakBins(*parts) for parts in zip(columns, numbers, edges, strict=True)]


def edges_of(columns: Sequence[str], numbers: Sequence[bool], *blocks: pa.Table) -> list[Any]:
    """Edges of the bins of each column, from these rows."""
    edges: list[np.ndarray] = []
    for name, number in zip(columns, numbers, strict=True):
        if number:
            values = np.concatenate([as_numbers(block[name]) for block in blocks])
            values = np.sort(values[~np.isnan(values)])
            distinct = np.unique(values)
            limit = min(max(len(values) // _ROWS_A_BIN, 2), _NUMBER_BINS)
            if len(distinct) > limit:
                at = np.linspace(0, len(values) - 1, limit).astype(int)
                distinct = np.unique(values[at])
            edges.append(distinct)
        else:
            hashes = np.concatenate(
                [hash_rows(block, [name])[block[name].is_valid().to_numpy()] for block in blocks]
            )
            distinct, counts = np.unique(hashes, return_counts=True)
            edges.append(np.sort(distinct[np.lexsort((distinct, -counts))[:_CATEGORY_BINS]]))
    return edges


def is_number(kind: Any) -> bool:
    """Whether values of this type are numbers, booleans or times."""
    t = pa.types
    return bool(
        t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind) or t.is_boolean(kind)
        or t.is_temporal(kind)
    )  # fmt: skip


def as_numbers(column: Any) -> np.ndarray:
    """Numbers, booleans or times as float64 `(rows,)`, NaN where missing."""
    if pa.types.is_temporal(column.type):
        small = pa.types.is_date32(column.type) or pa.types.is_time32(column.type)
        column = pc.cast(column, pa.int32() if small else pa.int64())
    numbers = pc.cast(column, pa.float64(), safe=False)
    return pc.fill_null(numbers, np.nan).to_numpy()
