"""An hnswlib graph, labelled by the slots of a shard's rows."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import hnswlib
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from raysys.index._settings import IndexSettings

_SPARE = 1.1
_MIN_SPARE = 1000
# Labels, counters, locks, ids and versions: 1,426 bytes measured per row, for 20,000 to 120,000
# rows of 128 numbers at M=16, minus the vectors and the links.
_ROW_BYTES = 205
_SKELETON, _ROWS_PER_PIVOT, _MAX_PIVOTS = 0.1, 100, 4096


class HnswGraph:
    """A hierarchical navigable small world (Malkov & Yashunin, 2018), by hnswlib.

    Not thread-safe; the shard's lock guards it.

    Attributes:
        size: Rows in the graph that are not deleted.
        tombstones: Deleted rows, which searches traverse and leave out.
    """

    def __init__(self, settings: IndexSettings, capacity: int) -> None:
        self._settings = settings
        self._hnsw = self._empty()
        self._hnsw.init_index(
            int(capacity * _SPARE) + _MIN_SPARE,
            M=settings.M,
            ef_construction=settings.ef_construction,
            random_seed=settings.seed,
        )
        self._ef = 0
        self.size = self.tombstones = 0

    @classmethod
    def load(
        cls, settings: IndexSettings, file: Path, deleted: np.ndarray, late: np.ndarray
    ) -> HnswGraph:
        """A saved graph.

        `deleted` are the slots of deleted rows, in the graph or not; `late` those that may be
        marked in the file although their rows are alive.
        """
        graph = cls.__new__(cls)
        graph._settings, graph._ef = settings, 0
        graph._hnsw = graph._empty()
        graph._hnsw.load_index(str(file))
        slots = np.array(graph._hnsw.get_ids_list(), np.int64)
        graph._hnsw.resize_index(int(len(slots) * _SPARE) + _MIN_SPARE)
        for slot in late.tolist():
            with contextlib.suppress(RuntimeError):  # not marked
                graph._hnsw.unmark_deleted(slot)
        graph.tombstones = int(np.isin(slots, deleted).sum())
        graph.size = len(slots) - graph.tombstones
        return graph

    def save(self, file: Path) -> None:
        """Write the graph; hnswlib holds the interpreter lock meanwhile, about 1 s per GB."""
        self._hnsw.save_index(str(file))

    def add(self, slots: np.ndarray, vectors: np.ndarray) -> None:
        """Insert rows, in a single thread: the graph is then the same in every run."""
        count = self._hnsw.element_count + len(slots)
        if count > self._hnsw.max_elements:
            self._hnsw.resize_index(int(count * 1.5) + _MIN_SPARE)
        self._hnsw.add_items(vectors, slots, num_threads=1)
        self.size += len(slots)

    def delete(self, slots: np.ndarray) -> None:
        """Leave rows out of answers from now on."""
        for slot in slots.tolist():
            self._hnsw.mark_deleted(slot)
        self.size -= len(slots)
        self.tombstones += len(slots)

    def search(self, vectors: np.ndarray, k: int, ef: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The approximate k <= `size` nearest: slots int64 and distances float32 `(n, k)`.

        None if the graph reaches fewer than k rows from some vector: by inner product some rows
        are not a neighbour of any other.
        """
        ef = max(k, ef)
        if ef != self._ef:
            self._hnsw.set_ef(ef)
            self._ef = ef
        try:
            slots, distances = self._hnsw.knn_query(vectors, k=k, num_threads=1)
        except RuntimeError:
            return None
        return slots.view(np.int64), distances

    def _empty(self) -> Any:
        # Under "cosine" vectors are normalized, so that the product is the cosine.
        space = "l2" if self._settings.metric == "l2" else "ip"
        return hnswlib.Index(space=space, dim=self._settings.dim)


def memory_bytes(rows: int, settings: IndexSettings) -> int:
    """Estimated memory of a replica of a shard: graph, vectors beside it, ids."""
    links = 4 * settings.M * 2 + 4 * settings.M / max(1, settings.M - 1)
    return int(rows * (_SPARE * (4 * settings.dim + links) + 4 * settings.dim + _ROW_BYTES))


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
