"""One hnswlib graph, labelled by the slots of a shard's rows."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import hnswlib
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from raysys.index._types import Settings

_SPARE = 1.1
_MIN_SPARE = 1000
# Labels, counters, locks, ids and versions: what a process took for each of 20,000 to 120,000 rows
# of 128 numbers at m=16, 1,426 bytes, less the vectors and the links.
_ROW_BYTES = 205


class HnswGraph:
    """A hierarchical navigable small world (Malkov & Yashunin, 2018), by hnswlib.

    Not safe to change while it is searched: the shard's lock sees to that.

    Attributes:
        size: Rows in the graph that are not deleted.
        tombstones: Deleted rows, which searches walk through and leave out.
    """

    def __init__(self, settings: Settings, capacity: int) -> None:
        self._settings = settings
        self._hnsw = self._empty()
        self._hnsw.init_index(
            int(capacity * _SPARE) + _MIN_SPARE,
            M=settings.m,
            ef_construction=settings.ef_construction,
            random_seed=settings.seed,
        )
        self._ef = 0
        self.size = self.tombstones = 0

    @classmethod
    def load(
        cls, settings: Settings, file: Path, deleted: np.ndarray, late: np.ndarray
    ) -> HnswGraph:
        """A graph that was saved.

        Args:
            settings: Of the index.
            file: What `save` wrote.
            deleted: Slots whose rows have ended, in the graph or not.
            late: Slots that may be marked in the file though their rows have not ended.
        """
        graph = cls.__new__(cls)
        graph._settings, graph._ef = settings, 0
        graph._hnsw = graph._empty()
        graph._hnsw.load_index(str(file))
        slots = np.array(graph._hnsw.get_ids_list(), np.int64)
        graph._hnsw.resize_index(int(len(slots) * _SPARE) + _MIN_SPARE)
        ended = np.isin(slots, deleted)
        for slot in late.tolist():
            with contextlib.suppress(RuntimeError):  # it is not
                graph._hnsw.unmark_deleted(slot)
        graph.tombstones = int(ended.sum())
        graph.size = len(slots) - graph.tombstones
        return graph

    def save(self, file: Path) -> None:
        """Write the graph; hnswlib holds the interpreter meanwhile, about 1 s per GB."""
        self._hnsw.save_index(str(file))

    def add(self, slots: np.ndarray, vectors: np.ndarray) -> None:
        """Insert rows, by one thread: the graph that several build differs from run to run."""
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
        """The k nearest by the graph: slots int64 and distances float32 `(n, k)`.

        Args:
            vectors: float32 `(n, dim)`.
            k: At most `size`.
            ef: Candidates looked at; k at least.

        Returns:
            None if the graph leads to fewer than k rows from somewhere: by inner product some
            rows are nobody's neighbour.
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
        # Vectors come at length one under "cosine", so that the product is the cosine.
        space = "l2" if self._settings.metric == "l2" else "ip"
        return hnswlib.Index(space=space, dim=self._settings.dim)


def memory_bytes(rows: int, settings: Settings) -> int:
    """What a replica of a shard with so many rows takes: graph, vectors beside it, ids."""
    links = 4 * settings.m * 2 + 4 * settings.m / max(1, settings.m - 1)
    return int(rows * (_SPARE * (4 * settings.dim + links) + 4 * settings.dim + _ROW_BYTES))
