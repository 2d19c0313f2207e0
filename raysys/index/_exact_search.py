"""Exact nearest neighbours among the rows of a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from raysys.index._settings import Metric

_BLOCK_DISTANCES = 1 << 22  # 16 MiB at a time
_CENTRE_ROWS, _MAX_OFFSET = 64, 100


def exact_search(
    queries: np.ndarray, rows: np.ndarray, k: int, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of each query, by comparison with every row.

    From float32 `(q, dim)` and `(n, dim)`, n > 0, normalized under "cosine", to positions int64
    and distances float32 `(q, min(k, n))`, nearest first.
    """
    if metric == "l2":
        queries, rows = _centred(queries, rows)
    count = min(k, len(rows))
    positions = np.empty((len(queries), count), np.int64)
    distances = np.empty((len(queries), count), np.float32)
    step = max(1, _BLOCK_DISTANCES // len(rows))
    for first in range(0, len(queries), step):
        block = slice(first, first + step)
        scores = _scores(queries[block], rows, metric)
        best = np.argpartition(scores, count - 1, axis=1)[:, :count]
        near = np.take_along_axis(scores, best, axis=1)
        if metric == "l2":
            # Cancellation has cost digits: compute the few remaining distances again.
            near = ((rows[best] - queries[block, None]) ** 2).sum(axis=2)
        order = np.argsort(near, axis=1, kind="stable")
        positions[block] = np.take_along_axis(best, order, axis=1)
        distances[block] = np.take_along_axis(near, order, axis=1)
    return positions, distances


def _scores(queries: np.ndarray, rows: np.ndarray, metric: Metric) -> np.ndarray:
    """Distances, under "l2" up to the query's own square, which does not change the order."""
    products = queries @ rows.T
    if metric != "l2":
        return np.subtract(1, products, out=products)
    return np.einsum("nd,nd->n", rows, rows) - 2 * products


def _centred(queries: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both moved to the origin if they lie far from it.

    Far from the origin the squares are so large that rounding hides the differences between
    neighbours.
    """
    sample = rows[:: max(1, len(rows) // _CENTRE_ROWS)]
    centre = sample.mean(axis=0)
    spread = np.square(sample - centre).sum(axis=1).mean()
    if centre @ centre <= _MAX_OFFSET * spread:
        return queries, rows
    return queries - centre, rows - centre
