"""Bins, categories and texts: bisection, look-ups and hashes, without arithmetic on floats.

Each class computes the same integers in two ways: `fill_row` fills a row `(d,)` value by value,
`fill_rows` a transposed matrix `(d, n)` by arrays.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from raysys.features._hashing import hash_of, hashes_of, pair_hash, pair_hashes, word_hashes, words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raysys.features._raw_inputs import CodedColumn
    from raysys.features._transforms import Binned, Crossed, Hashed, State, TextHashed

    # Output column and the number to write into it, by category.
    Cell = Callable[[str | None], tuple[int, float]]


class FittedBins:
    """One column in bins."""

    def __init__(self, row: int, first: int, edges: np.ndarray, transform: Binned):
        self.row, self.first, self.onehot = row, first, transform.encode == "onehot"
        self.edges, self.edge_list = edges, edges.tolist()

    def fill_row(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """Fill `(d,)` from numbers `(k, 1)`."""
        value = float(numbers[self.row, 0])
        present = abs(value) < np.inf
        if self.onehot:
            if present:
                out[self.first + bisect_right(self.edge_list, value)] = 1.0
        else:
            out[self.first] = bisect_right(self.edge_list, value) if present else -1

    def fill_rows(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """Fill `(d, n)` from numbers `(k, n)`."""
        values = numbers[self.row]
        present = np.isfinite(values)
        bins = np.searchsorted(self.edges, values, side="right")
        if self.onehot:
            out[self.first + bins[present], np.flatnonzero(present)] = 1.0
        else:
            out[self.first] = np.where(present, bins, -1)


class CategoryCells:
    """One column of categories, by the number that each of them writes."""

    def __init__(self, column: int, cell: Cell):
        self.column, self.cell = column, cell

    def fill_row(self, values: Sequence[str | None], out: np.ndarray) -> None:
        """Fill `(d,)` from the categories of one row."""
        place, number = self.cell(values[self.column])
        out[place] = number

    def fill_rows(self, columns: Sequence[CodedColumn], out: np.ndarray) -> None:
        """Fill `(d, n)` from columns of categories."""
        values, codes = columns[self.column]
        cells = [self.cell(value) for value in (*values, None)]  # a code of -1 is the last
        places = np.array([place for place, _ in cells], np.int64)[codes]
        written = np.array([number for _, number in cells], np.float64)[codes]
        out[places, np.arange(len(codes))] = written


class HashedBuckets:
    """One column of categories, or the combination of several, hashed."""

    def __init__(self, columns: Sequence[int], first: int, transform: Hashed | Crossed):
        self.columns, self.first = columns, first
        self.buckets, self.onehot = transform.buckets, transform.encode == "onehot"
        self.single = len(columns) == 1  # then a missing value is in no bucket

    def fill_row(self, values: Sequence[str | None], out: np.ndarray) -> None:
        """Fill `(d,)` from the categories of one row."""
        value = values[self.columns[0]]
        if self.single and value is None:
            if not self.onehot:
                out[self.first] = -1.0
            return
        combined = hash_of(value)
        for column in self.columns[1:]:
            combined = pair_hash(combined, hash_of(values[column]))
        bucket = combined % self.buckets
        if self.onehot:
            out[self.first + bucket] = 1.0
        else:
            out[self.first] = bucket

    def fill_rows(self, columns: Sequence[CodedColumn], out: np.ndarray) -> None:
        """Fill `(d, n)` from columns of categories."""
        inputs = [columns[column] for column in self.columns]
        combined, *more = (hashes_of(values)[codes] for values, codes in inputs)
        for hashes in more:
            combined = pair_hashes(combined, hashes)
        buckets = (combined % np.uint64(self.buckets)).astype(np.int64)
        present = inputs[0].codes >= 0 if self.single else np.ones(len(combined), bool)
        if self.onehot:
            rows = np.flatnonzero(present)
            out[self.first + buckets[rows], rows] = 1.0
        else:
            out[self.first] = np.where(present, buckets, -1)


def one_hot(state: State, first: int) -> Cell:
    """Cells of one-hot categories."""
    categories = state["categories"]
    cells = {category: (first + place, 1.0) for place, category in enumerate(categories)}
    infrequent, missing = (first + len(categories), 1.0), (first + len(categories) + 1, 1.0)
    return lambda value: missing if value is None else cells.get(value, infrequent)


def target_mean(state: State, first: int) -> Cell:
    """Cells of target-encoded categories."""
    cells: dict[str | None, tuple[int, float]] = {
        category: (first, mean)
        for category, mean in zip(state["categories"], state["means"].tolist(), strict=True)
    }
    cells[None] = (first, state["missing"])
    prior = (first, state["prior"])
    return lambda value: cells.get(value, prior)


class WordCounts:
    """One column of texts, as counts in buckets."""

    def __init__(self, column: int, first: int, transform: TextHashed):
        self.column, self.first = column, first
        self.buckets, self.ngrams = transform.buckets, transform.ngrams

    def fill_row(self, texts: Sequence[str | None], out: np.ndarray) -> None:
        """Fill `(d,)` from the texts of one row."""
        text = texts[self.column]
        if text is None:
            return
        hashes = [hash_of(word) for word in words(text)]
        runs = hashes
        for length in range(1, self.ngrams + 1):
            for run in runs:
                out[self.first + run % self.buckets] += 1.0
            runs = [pair_hash(run, word) for run, word in zip(runs, hashes[length:], strict=False)]

    def fill_rows(self, columns: Sequence[CodedColumn], out: np.ndarray) -> None:
        """Fill `(d, n)` from columns of texts."""
        values, codes = columns[self.column]
        distinct, counts = word_hashes(values)
        lengths = np.append(counts, 0)  # a code of -1 is the last
        # From the distinct texts to the rows: each row's words, one after the other.
        ends, counts = np.cumsum(lengths)[codes], lengths[codes]
        rows = np.repeat(np.arange(len(codes)), counts)
        hashes = distinct[np.arange(len(rows)) + np.repeat(ends - np.cumsum(counts), counts)]
        runs, starts = hashes, np.arange(len(hashes))
        for length in range(1, self.ngrams + 1):
            buckets = (runs % np.uint64(self.buckets)).astype(np.int64)
            np.add.at(out, (self.first + buckets, rows[starts]), np.float32(1))
            inside = starts[starts + length < len(hashes)]
            longer = np.flatnonzero(rows[inside] == rows[inside + length])
            runs, starts = runs[longer], starts[longer]
            runs = pair_hashes(runs, hashes[starts + length])
