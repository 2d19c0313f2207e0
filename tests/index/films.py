"""Films of random vectors, and what tests of a whole index wait for."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from raysys.index import VectorIndex, vector_table

SIZE, DIM, CLUSTERS = 900, 16, 30


def _clustered(seed: int, count: int) -> np.ndarray:
    """Vectors around the same centres whatever the seed: float32 `(count, DIM)`."""
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, DIM))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, CLUSTERS, count)] + 0.3 * rng.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = _clustered(1, SIZE), _clustered(2, 50)
IDS = np.arange(SIZE) * 7 + 3  # not row numbers
YEARS = np.arange(SIZE) % 100 + 1920
FILMS = vector_table(
    IDS, VECTORS, {"year": YEARS, "genre": [["Drama", "War"][i % 2] for i in range(SIZE)]}
)


def axis(number: int) -> np.ndarray:
    """A unit vector along an axis, float32 `(1, DIM)`."""
    return np.eye(DIM, dtype=np.float32)[[number]]


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.05)


def versions(index: VectorIndex) -> set[int]:
    return {counts["version"] if counts else -1 for counts in index.status().values()}
