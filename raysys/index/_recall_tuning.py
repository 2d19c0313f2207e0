"""Choosing ef by the recall that it gives."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysys.errors import DataError

if TYPE_CHECKING:
    from raysys.index._vector_index import VectorIndex

_LARGEST = 4096
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    Attributes:
        ef: The smallest that reaches the recall.
        recall: That it gives, share of the true k nearest.
        tried: Recall and queries a second, in batches, of each ef that was tried.
    """

    ef: int
    recall: float
    tried: dict[int, tuple[float, float]]


def smallest_ef(index: VectorIndex, queries: np.ndarray, recall: float, k: int) -> Tuned:
    """Double ef until it reaches the recall, then halve the gap.

    Raises:
        DataError: No ef does.
    """
    if not 0 < recall <= 1 or not len(queries):
        raise DataError(f"recall is in (0, 1] and there are queries; given: {recall}")
    truth = index.exact(queries, k).ids
    tried: dict[int, tuple[float, float]] = {}

    def reaches(ef: int) -> bool:
        started = time.perf_counter()
        found = index.query(queries, k, ef=ef).ids
        seconds = time.perf_counter() - started
        hits = sum(
            len(np.intersect1d(ours[ours >= 0], best[best >= 0]))
            for ours, best in zip(found, truth, strict=True)
        )
        tried[ef] = hits / max(1, (truth >= 0).sum()), len(queries) / seconds
        return tried[ef][0] >= recall

    high = k
    while not reaches(high):
        high *= 2
        if high > _LARGEST:
            ef, (best, _) = max(tried.items(), key=lambda one: one[1][0])
            raise DataError(
                f"recall {recall} is not reached: {best:.4f} with ef {ef}. Build the index with a "
                "larger m or ef_construction"
            )
    low = high // 2 if high > k else k
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return Tuned(high, tried[high][0], dict(sorted(tried.items())))


def between(index: VectorIndex, count: int) -> np.ndarray:
    """Vectors like those of the index and not in it, float32 `(n, dim)`.

    A row of the graph is found too easily: its links lead to its neighbours. So each is moved
    half-way to one of its nearest.
    """
    rng = np.random.default_rng(0)
    drawn = index.sample(count)
    near = index.query(drawn, _NEIGHBOURS + 1).ids
    chosen = near[np.arange(len(drawn)), rng.integers(1, _NEIGHBOURS + 1, len(drawn))]
    chosen = np.where(chosen >= 0, chosen, near[:, 0])
    rows = index.get(np.unique(chosen))
    vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
    ids = rows["id"].to_numpy()
    order = np.argsort(ids)
    return (drawn + vectors[order[np.searchsorted(ids[order], chosen)]]) / 2
