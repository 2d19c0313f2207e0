"""Bins in which the values of a column are counted, made of the training split."""

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

# Bins of numbers hold about as many rows of the training split each, and enough to tell by.
_NUMBER_BINS, _ROWS_A_BIN = 256, 20
# Categories by name, the most frequent ones; the others share a bin.
_CATEGORY_BINS = 512
# Rows of the training split from which the bins are made.
_SAMPLE = 50_000


@dataclass(frozen=True)
class Bins:
    """Where the values of a column are counted: bin 0 those missing, the last one the rest.

    Attributes:
        column: Name of the column.
        number: Whether it holds numbers or times, not categories.
        edges: Upper edges, float64, each in the bin below it; or hashes of categories, uint64.
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
        known = self.edges[np.minimum(at, len(self.edges) - 1)] == hashes if len(self.edges) else at
        bins = np.where(known, 1 + at, self.count - 1)
        return np.where(block[self.column].is_null().to_numpy(), 0, bins)


def make_bins(train: Table, columns: Sequence[str], seed: int = 0) -> list[Bins]:
    """Bins of each column, from a sample of the training split that one task looks at."""
    if not columns:
        return []
    schema = train.schema
    numbers = [is_number(schema.field(name).type) for name in columns]
    drawn = sample(train.select(list(columns)), min(_SAMPLE, len(train)), seed=seed)
    task = value_task("leaks_bins")
    edges = results(
        [task.remote(edges_of, list(columns), numbers, *(block for block, _ in numbered(drawn)))]
    )[0]
    return [Bins(*parts) for parts in zip(columns, numbers, edges, strict=True)]


def edges_of(columns: Sequence[str], numbers: Sequence[bool], *blocks: pa.Table) -> list[Any]:
    """The edges of each column's bins, of these rows."""
    made = []
    for name, number in zip(columns, numbers, strict=True):
        if number:
            values = np.concatenate([as_numbers(block[name]) for block in blocks])
            values = np.sort(values[~np.isnan(values)])
            some = np.unique(values)
            most = min(max(len(values) // _ROWS_A_BIN, 2), _NUMBER_BINS)
            if len(some) > most:
                at = np.linspace(0, len(values) - 1, most).astype(int)
                some = np.unique(values[at])
            made.append(some)
        else:
            hashes = np.concatenate(
                [hash_rows(block, [name])[block[name].is_valid().to_numpy()] for block in blocks]
            )
            some, counts = np.unique(hashes, return_counts=True)
            made.append(np.sort(some[np.lexsort((some, -counts))[:_CATEGORY_BINS]]))
    return made


def is_number(kind: Any) -> bool:
    """Whether values of this type are numbers, truth values or times."""
    t = pa.types
    return bool(
        t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind) or t.is_boolean(kind)
        or t.is_temporal(kind)
    )  # fmt: skip


def as_numbers(column: Any) -> np.ndarray:
    """Numbers, truth values or times as float64 `(rows,)`, NaN where one is missing."""
    if pa.types.is_temporal(column.type):
        small = pa.types.is_date32(column.type) or pa.types.is_time32(column.type)
        column = pc.cast(column, pa.int32() if small else pa.int64())
    numbers = pc.cast(column, pa.float64(), safe=False)
    return pc.fill_null(numbers, np.nan).to_numpy()
