"""Ranking metrics over padded arrays of ids."""

import numpy as np


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k highest scores of each row, int64 `(n, min(k, columns))`, best first."""
    k = min(k, scores.shape[1])
    among = np.argpartition(-scores, k - 1, axis=1)[:, :k] if k else np.empty((len(scores), 0), int)
    order = np.argsort(-np.take_along_axis(scores, among, axis=1), axis=1, kind="stable")
    return np.take_along_axis(among, order, axis=1)


def ndcg(ranked: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain with binary relevance.

    Järvelin & Kekäläinen, "Cumulated gain-based evaluation of IR techniques" (2002).

    Args:
        ranked: int64 `(n, >= k)`, best first, each id at most once a row.
        relevant: int64 `(n, r)`, padded with -1.
        k: Cutoff.

    Returns:
        float64 `(n,)`; 0 where nothing is relevant.
    """
    gains = 1.0 / np.log2(np.arange(2, k + 2))
    hits = _hits(ranked, relevant, k)
    ideal = np.concatenate([[0.0], np.cumsum(gains)])
    best = ideal[np.minimum((relevant >= 0).sum(axis=1), k)]
    return np.divide(hits @ gains, best, out=np.zeros(len(ranked)), where=best > 0)


def recall(ranked: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """Share of the relevant ids among the first k; arguments as for `ndcg`."""
    total = (relevant >= 0).sum(axis=1)
    hits = _hits(ranked, relevant, k).sum(axis=1)
    return np.divide(hits, total, out=np.zeros(len(ranked)), where=total > 0)


def _hits(ranked: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    if ranked.shape[1] < k:
        raise ValueError(f"{ranked.shape[1]} ranked ids per row are too few for a cutoff of {k}")
    top = ranked[:, :k, None]
    return ((top == relevant[:, None, :]) & (top >= 0)).any(axis=2).astype(float)
