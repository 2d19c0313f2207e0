"""Reservoir samples of streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.data.sampling._sample import NEVER, random_key
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable


def reservoir_sample(
    batches: Iterable[Any], rows: int, *, weights: str | None = None, seed: int = 0
) -> pa.Table:
    """Draw rows of a stream of unknown length, in one pass and the memory of a few samples.

    The result equals `sample` of all batches as one table; it has all rows if there are fewer.

    Args:
        batches: Arrow tables or record batches of one schema.
        rows: Number of rows to draw, from 1 on.
        weights: Column of weights, see `sample`.
        seed: Seed of the draw, see `sample`.

    Raises:
        DataError: The stream is empty, or a weight is invalid.
    """
    if rows < 1:
        raise DataError(f"rows={rows}: a reservoir holds at least 1 row")
    key, first = random_key(seed, weights), 0
    reservoir: pa.Table | None = None
    keys, limit = np.zeros(0, np.uint64), np.uint64(NEVER if weights else 2**64 - 1)
    for batch in batches:
        block = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        drawn = key(block, first)
        first += len(block)
        # Rows stay in the order of the stream: the earlier of two equal keys wins.
        close = drawn < limit
        candidates = block.filter(pa.array(close))
        parts = [candidates] if reservoir is None else [reservoir, candidates]
        reservoir = pa.concat_tables(parts)
        keys = np.concatenate([keys, drawn[close]])
        if len(keys) >= 2 * rows:
            keys, reservoir = _smallest(keys, reservoir, rows)
            limit = keys.max()
    if reservoir is None:
        raise DataError("the stream ended before its first batch: give at least one batch")
    return _smallest(keys, reservoir, rows)[1].combine_chunks()


def _smallest(keys: np.ndarray, rows: Any, count: int) -> tuple[np.ndarray, Any]:
    """The rows with the smallest keys, in their order."""
    chosen = np.sort(np.argsort(keys, kind="stable")[:count])
    return keys[chosen], rows.take(chosen)
