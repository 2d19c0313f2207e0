"""Choice of `ef_search` by the recall of queries."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysys.errors import DataError
from raysys.index._rows import vector_matrix

if TYPE_CHECKING:
    from raysys.index._vector_index import VectorIndex

_MAX_EF_SEARCH = 4096
_NEIGHBOURS = 10


@dataclass(frozen=True)
class RecallTuningResult:
    """Result of `VectorIndex.tune`.

    Attributes:
        ef_search: Smallest value that reaches the recall.
        recall: Its recall, the share of the true k nearest that are found.
        trials: Recall, and queries per second in batches, of each value that was tried.
    """

    ef_search: int
    recall: float
    trials: dict[int, tuple[float, float]]


def smallest_ef_search(
    index: VectorIndex, queries: np.ndarray, recall: float, k: int
) -> RecallTuningResult:
    """Double `ef_search` until it reaches the recall, then bisect."""
    if not 0 < recall <= 1 or not len(queries):
        raise DataError(
            f"recall must be in (0, 1] and queries not empty; given: {recall}, "
            f"{len(queries)} queries"
        )
    truth = index.exact(queries, k).ids
    trials: dict[int, tuple[float, float]] = {}

    def reaches(ef_search: int) -> bool:
        started = time.perf_counter()
        ids = index.query(queries, k, ef_search=ef_search).ids
        seconds = time.perf_counter() - started
        hits = sum(
            len(np.intersect1d(row[row >= 0], best[best >= 0]))
            for row, best in zip(ids, truth, strict=True)
        )
        trials[ef_search] = hits / max(1, (truth >= 0).sum()), len(queries) / seconds
        return trials[ef_search][0] >= recall

    high = k
    while not reaches(high):
        high *= 2
        if high > _MAX_EF_SEARCH:
            ef_search, (best, _) = max(trials.items(), key=lambda trial: trial[1][0])
            raise DataError(
                f"recall {recall} is out of reach: {best:.4f} with ef_search={ef_search}. Build "
                "the index with a larger M or ef_construction"
            )
    low = high // 2 if high > k else k
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return RecallTuningResult(high, trials[high][0], dict(sorted(trials.items())))


def sample_queries(index: VectorIndex, count: int) -> np.ndarray:
    """Vectors similar to those of the index but not in it, float32 `(n, dim)`.

    A row of the graph is found too easily, since its links lead to its neighbours. So each is
    moved half-way to one of its nearest.
    """
    rng = np.random.default_rng(0)
    sample = index.sample(count)
    near = index.query(sample, _NEIGHBOURS + 1).ids
    chosen = near[np.arange(len(sample)), rng.integers(1, _NEIGHBOURS + 1, len(sample))]
    chosen = np.where(chosen >= 0, chosen, near[:, 0])
    rows = index.get(np.unique(chosen))
    ids, vectors = rows["id"].to_numpy(), vector_matrix(rows["vector"])
    order = np.argsort(ids)
    return (sample + vectors[order[np.searchsorted(ids[order], chosen)]]) / 2
