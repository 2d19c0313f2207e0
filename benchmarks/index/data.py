"""Vectors in clusters with a price each, the exact answers, and recall.

A row is one of many random centres on the unit sphere plus as much noise, as real embeddings have
themes that overlap. A centre has 200 rows, so that few rows are as hard to search as many: hnswlib
at M=16 and ef_construction=200 finds about 0.96 of the ten nearest at ef 20 and more than 0.99 of
them at ef 40.
"""

from dataclasses import dataclass

import numpy as np

ROWS_A_CENTRE = 200  # 1,000 centres for 200,000 rows
NOISE = 1.0  # length of the noise, in lengths of a centre
PRICES = 1_000_000
_BLOCK_BYTES = 64 * 2**20  # of scores, of copied rows or of noise at one time
_QUERIES = 1_000  # of `exact` at one time
_DENSE = 0.25  # share of rows that pass from which scoring all costs less than copying them


@dataclass(frozen=True)
class Data:
    """A set of vectors to search in.

    Attributes:
        vectors: `(rows, dim)` float32 of length one; a row's id is its position.
        price: `(rows,)` int64 from 0 to 999,999, evenly spread and independent of the vectors.
        queries: `(queries, dim)` float32 of length one, drawn as the rows were, but not among them.
    """

    vectors: np.ndarray
    price: np.ndarray
    queries: np.ndarray


def make(rows: int, queries: int, dim: int = 128, seed: int = 0) -> Data:
    """Draw vectors, queries and prices; the vectors do not depend on the number of queries."""
    ours = np.random.default_rng(seed).spawn(4)
    count = max(1, rows // ROWS_A_CENTRE)
    centres = _unit(ours[0].standard_normal((count, dim), dtype=np.float32))
    return Data(
        _around(centres, rows, ours[1]),
        ours[2].integers(0, PRICES, rows),
        _around(centres, queries, ours[3]),
    )


def price_range(share: float) -> tuple[int, int]:
    """Prices `[low, high)` that this share of the rows has, from the middle of all prices."""
    width = round(PRICES * share)
    low = (PRICES - width) // 2
    return low, low + width


def exact(
    vectors: np.ndarray, queries: np.ndarray, k: int, mask: np.ndarray | None = None
) -> np.ndarray:
    """The ids of the largest inner products, by comparing each query with each row.

    It holds blocks of 64 MiB, however many rows and queries there are.

    Args:
        vectors: `(n, dim)` float32.
        queries: `(q, dim)` float32.
        k: Ids for each query.
        mask: `(n,)` bool, the rows that may be answered; all of them without it.

    Returns:
        `(q, k)` int64, best first, with -1 where fewer than `k` rows may be answered.
    """
    answers = [
        _exact(vectors, queries[start : start + _QUERIES], k, mask)
        for start in range(0, len(queries), _QUERIES)
    ]
    return np.concatenate(answers) if answers else np.empty((0, k), np.int64)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """The share of the true ids `(q, k)` that were found; -1 in `truth` counts nowhere."""
    hits = (truth[:, :, None] == found[:, None, :]).any(axis=2)
    return float(hits[truth >= 0].mean())


def _exact(vectors: np.ndarray, queries: np.ndarray, k: int, mask: np.ndarray | None) -> np.ndarray:
    step = max(k, _BLOCK_BYTES // (4 * max(queries.shape)))
    best = np.full((len(queries), k), -np.inf, np.float32)
    ids = np.full((len(queries), k), -1, np.int64)
    for start in range(0, len(vectors), step):
        scores, rows = _scores(vectors, queries, mask, slice(start, start + step))
        top = _largest(scores, k)
        scores = np.concatenate([best, np.take_along_axis(scores, top, axis=1)], axis=1)
        both = np.concatenate([ids, rows[top]], axis=1)
        top = _largest(scores, k)
        best, ids = (np.take_along_axis(each, top, axis=1) for each in (scores, both))
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(np.where(np.isneginf(best), -1, ids), order, axis=1)


def _scores(
    vectors: np.ndarray, queries: np.ndarray, mask: np.ndarray | None, block: slice
) -> tuple[np.ndarray, np.ndarray]:
    """The scores `(q, b)` of rows of a block and the rows' ids `(b,)`; -inf where none may be."""
    here = vectors[block]
    positions = np.arange(len(here))
    if mask is not None and mask[block].mean() < _DENSE:
        positions = np.flatnonzero(mask[block])
        return queries @ here[positions].T, positions + block.start
    scores = queries @ here.T
    if mask is not None:
        scores[:, ~mask[block]] = -np.inf
    return scores, positions + block.start


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions `(q, k)` of the largest scores, in any order; all if there are fewer."""
    if scores.shape[1] <= k:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return np.argpartition(scores, -k, axis=1)[:, -k:]


def _around(centres: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Rows `(count, dim)` around random centres, made in blocks."""
    dim = centres.shape[1]
    rows = np.empty((count, dim), np.float32)
    step = max(1, _BLOCK_BYTES // (4 * dim))
    for start in range(0, count, step):
        block = rows[start : start + step]
        random.standard_normal(out=block, dtype=np.float32)
        block *= np.float32(NOISE / np.sqrt(dim))
        block += centres[random.integers(0, len(centres), len(block))]
        _unit(block)
    return rows


def _unit(rows: np.ndarray) -> np.ndarray:
    """The rows themselves, brought to length one."""
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
