"""What is asked of every peer alike: the ef that reaches a recall, and queries a second."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from benchmarks.index.data import recall

EFS = (10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 256, 512)
FILTER_EFS = (
    10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512, 768, 1024,
    2048, 4096, 8192,
)  # fmt: skip
Ask = Callable[[np.ndarray], np.ndarray]


class HasEf(Protocol):
    """What has an ef: every peer."""

    def set_ef(self, ef: int) -> None:
        """Candidates that a search keeps."""


def smallest_ef(
    peer: HasEf, ask: Ask, queries: np.ndarray, truth: np.ndarray, least: float = 0.95,
    efs: Sequence[int] = EFS,
) -> tuple[int, float]:  # fmt: skip
    """Set the smallest ef of a rising list that exceeds a recall, or the last if none does.

    Args:
        peer: Whose ef is set.
        ask: Queries `(q, dim)` to ids `(q, k)`, such as `lambda rows: peer.query(rows, 10)`.
        queries: `(q, dim)` float32.
        truth: The exact ids `(q, k)`.
        least: The recall to exceed.
        efs: What is tried; `FILTER_EFS` for filters, where some peers need far more.

    Returns:
        The ef that is set now, and its recall.
    """
    ef, reached = 0, 0.0
    for ef in efs:
        peer.set_ef(ef)
        reached = recall(ask(queries), truth)
        if reached > least:
            break
    return ef, reached


def queries_per_s(ask: Ask, queries: np.ndarray, batch: int = 1, repeats: int = 5) -> float:
    """Ask all queries in batches, one batch after the other; the median of the repeats.

    Args:
        ask: Queries `(batch, dim)` to ids `(batch, k)`.
        queries: `(q, dim)` float32.
        batch: Rows asked at one time; 1 asks one by one.
        repeats: Of all queries, after one batch to warm up.
    """
    batches = [queries[start : start + batch] for start in range(0, len(queries), batch)]
    ask(batches[0])
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for rows in batches:
            ask(rows)
        seconds.append(time.perf_counter() - start)
    return len(queries) / statistics.median(seconds)
