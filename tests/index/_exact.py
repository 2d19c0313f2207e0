"""What an index must answer: rows in a dict, compared one by one."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from raysys.index._change_record import Batch
from raysys.index._shard import Shard
from raysys.index._types import NO_ID, Metric, Settings

SCHEMA = pa.schema({"year": pa.int16(), "name": pa.string()})
# Each filter, and what it means.
FILTERS: dict[str, Callable[[int, dict[str, Any]], bool]] = {
    "True": lambda number, row: True,
    "False": lambda number, row: False,
    "id < 20": lambda number, row: number < 20,
    "year >= 5": lambda number, row: row["year"] is not None and row["year"] >= 5,
    "not year >= 5": lambda number, row: row["year"] is not None and row["year"] < 5,
    "year is None": lambda number, row: row["year"] is None,
    "year == 7 or 'a' in name": lambda number, row: (
        row["year"] == 7 or (row["name"] is not None and "a" in row["name"])
    ),
}


def exact_settings(metric: Metric = "l2", dim: int = 4, **others: Any) -> Settings:
    """With so many links no row of a small graph loses one, and with this ef all are visited."""
    return Settings(metric=metric, dim=dim, m=128, ef_construction=300, ef=1000, **others)


class Model:
    """The rows of an index by id: vector and attributes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rows: dict[int, dict[str, Any]] = {}

    def copy(self) -> "Model":
        made = Model(self.settings)
        made.rows = dict(self.rows)
        return made

    def apply(self, batch: Batch) -> None:
        attributes = batch.attributes.to_pylist() or [{}] * len(batch.ids)
        for number in batch.deleted.tolist():
            self.rows.pop(number, None)
        for number, vector, row in zip(batch.ids.tolist(), batch.vectors, attributes, strict=True):
            self.rows[number] = {"year": None, "name": None, **row, "vector": vector}

    def distances(self, ids: Iterable[int], query: np.ndarray) -> np.ndarray:
        vectors = np.array([self.rows[one]["vector"] for one in ids], np.float64)
        vectors = vectors.reshape(-1, self.settings.dim)
        query = query.astype(np.float64)
        if self.settings.metric == "l2":
            return ((vectors - query) ** 2).sum(axis=1)
        if self.settings.metric == "cosine" and query.any():
            query = query / np.linalg.norm(query)
        return 1 - vectors @ query

    def check(
        self, ids: np.ndarray, distances: np.ndarray, queries: np.ndarray, k: int,
        filters: list[str | None] | None = None,
    ) -> None:  # fmt: skip
        """The answer is the nearest k that match, padded; of equal distances any."""
        assert ids.shape == distances.shape == (len(queries), k)
        assert (ids.dtype, distances.dtype) == (np.int64, np.float32)
        for row, query in enumerate(queries):
            text = filters[row] if filters else None
            keep = FILTERS["True" if text is None else text]
            matching = [number for number, one in self.rows.items() if keep(number, one)]
            count = min(k, len(matching))
            found = ids[row, :count].tolist()
            assert (ids[row, count:] == NO_ID).all()
            assert np.isinf(distances[row, count:]).all()
            assert len(set(found)) == count
            assert set(found) <= set(matching)
            best = np.sort(self.distances(matching, query))[:count]
            np.testing.assert_allclose(distances[row, :count], best, atol=1e-4, rtol=1e-4)
            own = self.distances(found, query)
            np.testing.assert_allclose(distances[row, :count], own, atol=1e-4, rtol=1e-4)

    def check_shard(self, shard: Shard, queries: np.ndarray, **more: Any) -> None:
        """The shard answers like this for some k, with each filter and without."""
        for k in (1, 5, len(self.rows) + 3):
            self.check(*shard.search(queries, k, **more)[1:], queries, k)
            for text in FILTERS:
                chosen = [text] * len(queries)
                found = shard.search(queries, k, filters=chosen, **more)
                self.check(*found[1:], queries, k, chosen)


def batch_of(
    settings: Settings, ids: Iterable[int], deleted: Iterable[int] = (), seed: int = 0
) -> Batch:
    """Random rows, some of them equal, and ids to delete."""
    ids, rng = np.array(list(ids), np.int64), np.random.default_rng(seed)
    vectors = rng.integers(-3, 4, (len(ids), settings.dim)).astype(np.float32)
    vectors[~vectors.any(axis=1)] = 1
    if settings.metric == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    years = [None if one == 0 else int(one) for one in rng.integers(0, 10, len(ids))]
    names = rng.choice(["a", "b", "ba", None], len(ids)).tolist()  # type: ignore[arg-type]
    attributes = pa.table({"year": years, "name": names}, SCHEMA)
    return Batch(ids, vectors, attributes, np.array(list(deleted), np.int64))


def shard_of_batch(settings: Settings, batch: Batch, version: int = 1) -> Shard:
    """A shard built of a batch's rows."""
    return Shard.build(settings, batch.ids, batch.vectors, batch.attributes, version)


def queries_of(settings: Settings, count: int = 4, seed: int = 9) -> np.ndarray:
    """Vectors that are not in the index."""
    drawn = np.random.default_rng(seed).normal(size=(count, settings.dim))
    return (3 * drawn).astype(np.float32)
