"""The index on actors, and its single shard inside a process, as two more peers."""

import time

import numpy as np

from benchmarks.index._peer import EF_CONSTRUCTION, M, Peer
from raysys.index import VectorIndex, rows
from raysys.storage import Storage


class Ours(Peer):
    """`VectorIndex`, asked through its actors."""

    def __init__(self, storage: Storage, shards: int) -> None:
        super().__init__(shards)
        self.name, self._storage, self.shards = f"raysys, {shards} actors", storage, shards
        self._ef: int | None = None

    def _build(self, vectors: np.ndarray) -> None:
        table = rows(np.arange(len(vectors)), vectors, {"price": self._price})
        self.index = VectorIndex.build(
            f"benchmark-{self.shards}", table, self._storage, metric="ip", shards=self.shards,
            m=M, ef_construction=EF_CONSTRUCTION,
        )  # fmt: skip

    def set_ef(self, ef: int) -> None:
        """See the base class."""
        self._ef = ef

    def query(self, vectors: np.ndarray, k: int) -> np.ndarray:
        """See the base class."""
        return self.index.query(vectors, k, ef=self._ef).ids

    def filtered(self, vector: np.ndarray, k: int, low: int, high: int) -> np.ndarray:
        """By a predicate in the index's language."""
        text = f"{low} <= price < {high}"
        return self.index.query(vector[None], k, ef=self._ef, filters=text).ids[0]

    def close(self) -> None:
        """See the base class."""
        self.index.close()


class Fused(Peer):
    """The copy of a single-shard index that a serving replica holds: no hop."""

    name = "raysys, fused"

    def __init__(self, whole: Ours) -> None:
        super().__init__(1)
        started = time.perf_counter()
        self._local = whole.index.local()
        self.build_seconds = time.perf_counter() - started
        self._ef: int | None = None

    def set_ef(self, ef: int) -> None:
        """See the base class."""
        self._ef = ef

    def query(self, vectors: np.ndarray, k: int) -> np.ndarray:
        """See the base class."""
        return self._local.query(vectors, k, ef=self._ef).ids

    def filtered(self, vector: np.ndarray, k: int, low: int, high: int) -> np.ndarray:
        """By a predicate in the index's language."""
        text = f"{low} <= price < {high}"
        return self._local.query(vector[None], k, ef=self._ef, filters=text).ids[0]

    def batch_filtered(self, vectors: np.ndarray, k: int, low: int, high: int) -> np.ndarray:
        """One predicate for a batch."""
        text = f"{low} <= price < {high}"
        return self._local.query(vectors, k, ef=self._ef, filters=text).ids
