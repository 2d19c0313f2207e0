"""What every peer is, and the settings of every graph."""

import importlib
import time
from typing import Any, ClassVar

import numpy as np

M = 16  # links a node keeps
EF_CONSTRUCTION = 200  # candidates looked at for each insertion


class Peer:
    """What every peer has.

    Attributes:
        name: For tables.
        filters: Whether `filtered` answers.
        threads: For the build and for batches; a single query has one thread, or one each shard.
        build_seconds: From the arrays to an index that answers.
    """

    name: str
    filters: ClassVar[bool] = True

    def __init__(self, threads: int = 2) -> None:
        self.threads = threads
        self.build_seconds = 0.0
        self._price = np.empty(0, np.int64)

    def build(self, vectors: np.ndarray, price: np.ndarray) -> None:
        """Index rows `(n, dim)` float32, ids by position, with their prices `(n,)` int64."""
        self._price = price
        start = time.perf_counter()
        self._build(vectors)
        self.build_seconds = time.perf_counter() - start

    def set_ef(self, ef: int) -> None:
        """Candidates that a search keeps: more find more and take longer."""

    def query(self, vectors: np.ndarray, k: int) -> np.ndarray:
        """The ids `(q, k)` int64 that are nearest to queries `(q, dim)` float32, best first."""
        raise NotImplementedError

    def filtered(self, vector: np.ndarray, k: int, low: int, high: int) -> np.ndarray | None:
        """The ids `(k,)` nearest to one query `(dim,)` among rows with `low <= price < high`.

        A place that the search could not fill has -1. None: this peer has no filters.
        """
        return None

    def close(self) -> None:
        """Give up the index and what it keeps on disk."""

    def _build(self, vectors: np.ndarray) -> None:
        raise NotImplementedError

    def _mask(self, low: int, high: int) -> np.ndarray:
        return (self._price >= low) & (self._price < high)


def package(module: str, name: str | None = None) -> Any:
    """Import what only the benchmarks need."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError(
            f"this peer needs the package {name or module}, which cannot be imported "
            f"({error}): `make bench` installs it"
        ) from error
