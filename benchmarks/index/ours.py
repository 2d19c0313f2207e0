"""The index on actors, and its single shard inside a process, as two more peers."""

import time

import numpy as np

from benchmarks.index._peer import EF_CONSTRUCTION, M, Peer
from raysys.index import LocalIndex, VectorIndex, vector_table
from raysys.storage import Storage


class _Asked(Peer):
    """What is asked like a `VectorIndex`."""

    _asked: VectorIndex | LocalIndex
    _ef: int | None = None

    def set_ef(self, ef: int) -> None:
        """See the base class."""
        self._ef = ef

    def query(self, vectors: np.ndarray, k: int) -> np.ndarray:
        """See the base class."""
        return self._asked.query(vectors, k, ef_search=self._ef).ids

    def filtered(self, vector: np.ndarray, k: int, low: int, high: int) -> np.ndarray:
        """By a predicate in the index's language."""
        return self.batch_filtered(vector[None], k, [(low, high)])[0]

    def batch_filtered(
        self, vectors: np.ndarray, k: int, ranges: list[tuple[int, int]]
    ) -> np.ndarray:
        """A batch in which each query has its own predicate."""
        filters = [f"{low} <= price < {high}" for low, high in ranges]
        return self._asked.query(vectors, k, ef_search=self._ef, filters=filters).ids


class Ours(_Asked):
    """`VectorIndex`, asked through its actors."""

    def __init__(self, storage: Storage, shards: int) -> None:
        super().__init__(shards)
        self.name, self._storage, self.shards = f"raysys, {shards} actors", storage, shards

    def _build(self, vectors: np.ndarray) -> None:
        table = vector_table(np.arange(len(vectors)), vectors, {"price": self._price})
        self.index = self._asked = VectorIndex.build(
            f"benchmark-{self.shards}", table, self._storage, metric="ip", shards=self.shards,
            M=M, ef_construction=EF_CONSTRUCTION,
        )  # fmt: skip

    def close(self) -> None:
        """See the base class."""
        self.index.close()


class Fused(_Asked):
    """The copy of a single-shard index that a serving replica holds: no hop."""

    name = "raysys, fused"

    def __init__(self, whole: Ours) -> None:
        super().__init__(1)
        started = time.perf_counter()
        self._asked = self._local = whole.index.local()
        self.build_seconds = time.perf_counter() - started

    def close(self) -> None:
        """See the base class."""
        self._local.close()
