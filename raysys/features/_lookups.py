"""Bins, categories and texts: bisection, look-ups and hashes, without arithmetic on floats.

Each has two ways to the same integers: `one` fills a row `(d,)` value by value, `many` a matrix
that is seen transposed, `(d, n)`, by arrays.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from raysys.features._hashing import hash_of, hashes_of, joined, joined_arrays, word_hashes, words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raysys.features._raw_inputs import Coded
    from raysys.features._transform_base import State
    from raysys.features._transforms import TextHashed

    # Of a category: which output column gets which number.
    Cell = Callable[[str | None], tuple[int, float]]


class Bins:
    """One column in bins."""

    def __init__(self, row: int, first: int, edges: np.ndarray, onehot: bool):
        self.row, self.first, self.onehot = row, first, onehot
        self.edges, self.listed = edges, edges.tolist()

    def one(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """Of numbers `(k, 1)`, into `(d,)`."""
        value = float(numbers[self.row, 0])
        there = abs(value) < np.inf
        if self.onehot:
            if there:
                out[self.first + bisect_right(self.listed, value)] = 1.0
        else:
            out[self.first] = bisect_right(self.listed, value) if there else -1

    def many(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """Of numbers `(k, n)`."""
        values = numbers[self.row]
        there = np.isfinite(values)
        bins = np.searchsorted(self.edges, values, side="right")
        if self.onehot:
            out[self.first + bins[there], np.flatnonzero(there)] = 1.0
        else:
            out[self.first] = np.where(there, bins, -1)


class Cells:
    """One column of categories, by what each of them writes."""

    def __init__(self, column: int, cell: Cell):
        self.column, self.cell = column, cell

    def one(self, values: Sequence[str | None], out: np.ndarray) -> None:
        """Of one row's categories, into `(d,)`."""
        place, number = self.cell(values[self.column])
        out[place] = number

    def many(self, columns: Sequence[Coded], out: np.ndarray) -> None:
        """Of columns of categories."""
        values, codes = columns[self.column]
        cells = [self.cell(value) for value in (*values, None)]  # a code of -1 is the last
        places = np.array([place for place, _ in cells], np.int64)[codes]
        written = np.array([number for _, number in cells], np.float64)[codes]
        out[places, np.arange(len(codes))] = written


class Buckets:
    """One or several columns of categories, hashed; of several, their combination."""

    def __init__(self, columns: Sequence[int], first: int, buckets: int, onehot: bool):
        self.columns, self.first, self.buckets, self.onehot = columns, first, buckets, onehot
        self.alone = len(columns) == 1  # then a missing value is in no bucket

    def one(self, values: Sequence[str | None], out: np.ndarray) -> None:
        """Of one row's categories, into `(d,)`."""
        value = values[self.columns[0]]
        if self.alone and value is None:
            if not self.onehot:
                out[self.first] = -1.0
            return
        made = hash_of(value)
        for column in self.columns[1:]:
            made = joined(made, hash_of(values[column]))
        bucket = made % self.buckets
        if self.onehot:
            out[self.first + bucket] = 1.0
        else:
            out[self.first] = bucket

    def many(self, columns: Sequence[Coded], out: np.ndarray) -> None:
        """Of columns of categories."""
        taken = [columns[column] for column in self.columns]
        made, *others = (hashes_of(values)[codes] for values, codes in taken)
        for other in others:
            made = joined_arrays(made, other)
        buckets = (made % np.uint64(self.buckets)).astype(np.int64)
        there = taken[0].codes >= 0 if self.alone else np.ones(len(made), bool)
        if self.onehot:
            rows = np.flatnonzero(there)
            out[self.first + buckets[rows], rows] = 1.0
        else:
            out[self.first] = np.where(there, buckets, -1)


def one_hot(categories: Sequence[str], first: int) -> Cell:
    """What a one-hot category writes."""
    cells = {category: (first + place, 1.0) for place, category in enumerate(categories)}
    other, missing = (first + len(categories), 1.0), (first + len(categories) + 1, 1.0)
    return lambda value: missing if value is None else cells.get(value, other)


def target_mean(state: State, first: int) -> Cell:
    """What a target-encoded category writes."""
    cells: dict[str | None, tuple[int, float]] = {
        category: (first, mean)
        for category, mean in zip(state["categories"], state["means"].tolist(), strict=True)
    }
    cells[None] = (first, state["missing"])
    prior = (first, state["prior"])
    return lambda value: cells.get(value, prior)


class Words:
    """One column of texts, as counts in buckets."""

    def __init__(self, column: int, first: int, transform: TextHashed):
        self.column, self.first = column, first
        self.buckets, self.ngrams = transform.buckets, transform.ngrams

    def one(self, texts: Sequence[str | None], out: np.ndarray) -> None:
        """Of one row's texts, into `(d,)`."""
        text = texts[self.column]
        if text is None:
            return
        hashes = [hash_of(word) for word in words(text)]
        runs = hashes
        for length in range(1, self.ngrams + 1):
            for made in runs:
                out[self.first + made % self.buckets] += 1.0
            runs = [joined(run, word) for run, word in zip(runs, hashes[length:], strict=False)]

    def many(self, columns: Sequence[Coded], out: np.ndarray) -> None:
        """Of columns of texts."""
        values, codes = columns[self.column]
        found, counts = word_hashes(values)
        lengths = np.append(counts, 0)  # a code of -1 is the last
        # From the texts to the rows that have them: each row's words, one after the other.
        ends, counts = np.cumsum(lengths)[codes], lengths[codes]
        rows = np.repeat(np.arange(len(codes)), counts)
        hashes = found[np.arange(len(rows)) + np.repeat(ends - np.cumsum(counts), counts)]
        runs, starts = hashes, np.arange(len(hashes))
        for length in range(1, self.ngrams + 1):
            buckets = (runs % np.uint64(self.buckets)).astype(np.int64)
            np.add.at(out, (self.first + buckets, rows[starts]), np.float32(1))
            inside = starts[starts + length < len(hashes)]
            kept = np.flatnonzero(rows[inside] == rows[inside + length])
            runs, starts = runs[kept], starts[kept]
            runs = joined_arrays(runs, hashes[starts + length])
