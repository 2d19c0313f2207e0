"""An HNSW graph of a shard's rows, by slot."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import _raysys_hnsw
import numpy as np

from raysys.index._exact_search import exact_search

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from raysys.index._filter_conditions import Conditions
    from raysys.index._settings import IndexSettings, Metric

# Ids, versions and the slots by id.
_ROW_BYTES = 150
_SKELETON, _ROWS_PER_PIVOT, _MAX_PIVOTS = 0.1, 100, 4096
_QUERIES_PER_THREAD = 4
# Of the graph, in comparisons of an exact search.
_PER_CANDIDATE = 18.0
# How 8-bit rows are tried; a product of longer ones may exceed int32.
_MAX_DIM = (2**31 - 1) // 127**2
_MIN_ROWS, _SAMPLE_NUMBERS, _SAMPLE_QUERIES, _MIN_RECALL = 1000, 1 << 24, 64, 0.99
_CORES = len(os.sched_getaffinity(0))


class HnswGraph:
    """A hierarchical navigable small world (Malkov & Yashunin, 2018), in C++ (`native`).

    The graph refers to rows of a matrix, the same in each call except for further rows. It compares
    them as 8-bit integers (scalar quantization, one scale a row) where that finds the neighbours of
    its first rows, and orders what it found by the exact distances. Not thread-safe; the shard's
    lock guards it.

    Attributes:
        tombstones: Deleted rows, which searches traverse and leave out.
    """

    def __init__(self, settings: IndexSettings, rows: np.ndarray) -> None:
        """An empty graph for these first rows, float32 `(n, dim)`."""
        self._threads = max(1, _CORES // settings.shards)
        self._graph = _raysys_hnsw.Graph(
            settings.dim, settings.M, settings.ef_construction, settings.seed % (1 << 64),
            settings.metric == "l2", is_quantizable(rows, settings), len(rows),
        )  # fmt: skip
        self.tombstones = 0

    @classmethod
    def load(
        cls, settings: IndexSettings, file: Path, rows: np.ndarray, deleted: np.ndarray
    ) -> HnswGraph:
        """A saved graph of rows; `deleted` are the slots of deleted ones, in the graph or not."""
        graph = cls(settings, rows)
        graph._graph.load(os.fsencode(file), rows)
        graph.delete(deleted)
        return graph

    def save(self, file: Path) -> None:
        """Write the graph, without the marks of deleted rows."""
        self._graph.save(os.fsencode(file))

    @property
    def size(self) -> int:
        """Rows in the graph that are not deleted."""
        return self._graph.size

    def add(self, slots: np.ndarray, rows: np.ndarray) -> None:
        """Insert rows of a matrix, in a single thread: the graph is then the same in every run."""
        self._graph.add(rows, slots)

    def delete(self, slots: np.ndarray) -> None:
        """Leave rows out of answers from now on; slots that are not in the graph are ignored."""
        size = self.size
        self._graph.remove(slots)
        self.tombstones += size - self.size

    def search(
        self, rows: np.ndarray, queries: np.ndarray, k: int, ef: int,
        filters: Sequence[Conditions | None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """The approximate k nearest: slots int64 and distances float32 `(n, k)`, padded.

        Fewer than k where the graph reaches no more: by inner product some rows are not a neighbour
        of any other.
        """
        answers = _answers(len(queries), k)
        threads = min(self._threads, max(1, len(queries) // _QUERIES_PER_THREAD))
        self._graph.search(rows, queries, k, ef, _PER_CANDIDATE, filters, threads, *answers)
        return answers


def is_quantizable(rows: np.ndarray, settings: IndexSettings) -> bool:
    """Whether rows in 8 bits, one scale each, have nearly the same neighbours.

    The nearest rows of some of them must be among a few times as many by the quantized rows. It is
    not so where rows are much nearer to each other than to the origin. Few rows prove nothing:
    those that follow may be of another kind.
    """
    if len(rows) < _MIN_ROWS or settings.dim > _MAX_DIM:
        return False
    if len(rows) > (count := max(_MIN_ROWS, _SAMPLE_NUMBERS // settings.dim)):
        rng = np.random.default_rng(settings.seed)
        rows = rows[rng.choice(len(rows), count, replace=False)]
    queries, k = rows[:: -(-len(rows) // _SAMPLE_QUERIES)], 10
    exact, _ = exact_search(queries, rows, k, settings.metric)
    near, _ = exact_search(_quantized(queries), _quantized(rows), 3 * k, settings.metric)
    return bool((exact[:, :, None] == near[:, None]).any(axis=2).mean() > _MIN_RECALL)


def _quantized(rows: np.ndarray) -> np.ndarray:
    scales = np.abs(rows).max(axis=1, keepdims=True) / 127
    return np.rint(rows / np.where(scales > 0, scales, 1)) * scales


def exact_nearest(
    rows: np.ndarray, slots: np.ndarray | int, queries: np.ndarray, k: int, metric: Metric,
    filters: Sequence[Conditions | None] | None, visible: Conditions = (),
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The k nearest among slots, or all below a number, that match each query's filter.

    And the conditions of `visible`. Slots int64 and distances float32 `(n, k)`, padded.
    """
    answers = _answers(len(queries), k)
    threads = min(_CORES, len(queries))
    _raysys_hnsw.scan(
        metric == "l2", rows, slots, queries, rows.shape[1], k, filters, visible, threads, *answers
    )
    return answers


def _answers(queries: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Slots and distances, all of which the search writes."""
    return np.empty((queries, k), np.int64), np.empty((queries, k), np.float32)


def memory_bytes(rows: int, settings: IndexSettings) -> int:
    """Estimated memory of a replica of a shard: vectors, also quantized, links, ids."""
    links = 4 * settings.M * 2 + 4 * settings.M / max(1, settings.M - 1) + 4
    return int(rows * (1.1 * 4 * settings.dim + settings.dim + 40 + links + _ROW_BYTES))


def insertion_order(vectors: np.ndarray, seed: int) -> np.ndarray:
    """An order of the rows in which neighbours mostly follow each other, int64 `(n,)`.

    Insertion then finds the graph's nodes in the processor's cache, which takes a quarter less
    time; a random tenth comes first, so that the graph has its far links (compare Coleman et al.,
    2022, on the order of nodes).
    """
    rng = np.random.default_rng(seed)
    count = min(_MAX_PIVOTS, -(-len(vectors) // _ROWS_PER_PIVOT))
    pivots = vectors[rng.choice(len(vectors), count, replace=False)]
    squares = np.einsum("nd,nd->n", pivots, pivots) / 2
    nearest = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), 8192):
        block = slice(start, start + 8192)
        nearest[block] = np.argmax(vectors[block] @ pivots.T - squares, axis=1)
    order = np.argsort(nearest, kind="stable")
    first = rng.random(len(vectors)) < _SKELETON
    return np.concatenate([order[first[order]], order[~first[order]]])
