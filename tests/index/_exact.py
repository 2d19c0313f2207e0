"""The reference of an index: rows in a dict, compared one by one."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raysys.index import IndexSettings, Metric
from raysys.index._change_record import ChangeBatch
from raysys.index._rows import NO_ID
from raysys.index._shard import Shard

METRICS: list[Metric] = ["cosine", "ip", "l2"]
METRIC = pytest.mark.parametrize("metric", METRICS)
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


def exact_settings(metric: Metric = "l2", dim: int = 4, **options: Any) -> IndexSettings:
    """Settings of an exact graph: `M` keeps every link of a small graph, `ef_search` visits all."""
    return IndexSettings(
        metric=metric, dim=dim, M=128, ef_construction=300, ef_search=1000, **options
    )


class Model:
    """The rows of an index by id: vector and attributes."""

    def __init__(self, settings: IndexSettings) -> None:
        self.settings = settings
        self.rows: dict[int, dict[str, Any]] = {}

    def copy(self) -> "Model":
        model_copy = Model(self.settings)
        model_copy.rows = dict(self.rows)
        return model_copy

    def apply(self, batch: ChangeBatch) -> None:
        attributes = batch.attributes.to_pylist() or [{}] * len(batch.ids)
        for number in batch.deleted.tolist():
            self.rows.pop(number, None)
        for number, vector, row in zip(batch.ids.tolist(), batch.vectors, attributes, strict=True):
            self.rows[number] = {"year": None, "name": None, **row, "vector": vector}

    def distances(self, ids: Iterable[int], query: np.ndarray) -> np.ndarray:
        vectors = np.array([self.rows[number]["vector"] for number in ids], np.float64)
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
        for place, query in enumerate(queries):
            text = filters[place] if filters else None
            keep = FILTERS["True" if text is None else text]
            matching = [number for number, row in self.rows.items() if keep(number, row)]
            count = min(k, len(matching))
            nearest = ids[place, :count].tolist()
            assert (ids[place, count:] == NO_ID).all()
            assert np.isinf(distances[place, count:]).all()
            assert len(set(nearest)) == count
            assert set(nearest) <= set(matching)
            best = np.sort(self.distances(matching, query))[:count]
            np.testing.assert_allclose(distances[place, :count], best, atol=1e-4, rtol=1e-4)
            own = self.distances(nearest, query)
            np.testing.assert_allclose(distances[place, :count], own, atol=1e-4, rtol=1e-4)

    def check_shard(self, shard: Shard, queries: np.ndarray, **more: Any) -> None:
        """The shard answers like this for some k, with each filter and without."""
        sizes = 1, 5, len(self.rows) + 3
        for place, k in enumerate(sizes):
            self.check(*shard.search(queries, k, **more)[1:], queries, k)
            # Each filter with one of the sizes, another one at the next version.
            for text in list(FILTERS)[(place + shard.version) % 3 :: 3]:
                filters: list[str | None] = [text] * len(queries)
                result = shard.search(queries, k, filters=filters, **more)
                self.check(*result[1:], queries, k, filters)


def batch_of(
    settings: IndexSettings, ids: Iterable[int], deleted: Iterable[int] = (), seed: int = 0
) -> ChangeBatch:
    """Random rows, some of them equal, and ids to delete."""
    ids, rng = np.array(list(ids), np.int64), np.random.default_rng(seed)
    vectors = rng.integers(-3, 4, (len(ids), settings.dim)).astype(np.float32)
    vectors[~vectors.any(axis=1)] = 1
    if settings.metric == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    years = [None if year == 0 else int(year) for year in rng.integers(0, 10, len(ids))]
    names = rng.choice(["a", "b", "ba", None], len(ids)).tolist()  # type: ignore[arg-type]
    attributes = pa.table({"year": years, "name": names}, SCHEMA)
    return ChangeBatch(ids, vectors, attributes, np.array(list(deleted), np.int64))


def shard_of_batch(settings: IndexSettings, batch: ChangeBatch, version: int = 1) -> Shard:
    """A shard built of a batch's rows."""
    return Shard.build(settings, batch.ids, batch.vectors, batch.attributes, version)


def queries_of(settings: IndexSettings, count: int = 4, seed: int = 9) -> np.ndarray:
    """Vectors that are not in the index."""
    drawn = np.random.default_rng(seed).normal(size=(count, settings.dim))
    return (3 * drawn).astype(np.float32)


QUERIES = queries_of(exact_settings())


class Pair:
    """A shard, and the model of each of its versions."""

    def __init__(self, metric: Metric = "l2", rows: int = 40) -> None:
        self.settings = exact_settings(metric)
        batch = batch_of(self.settings, range(rows), seed=5)
        self.model = Model(self.settings)
        self.model.apply(batch)
        self.shard = shard_of_batch(self.settings, batch)
        self.history = {1: self.model.copy()}

    def apply(self, ids: object = (), deleted: object = ()) -> int:
        version = self.shard.version + 1
        batch = batch_of(self.settings, ids, deleted, seed=version)  # type: ignore[arg-type]
        self.shard.apply(version, batch)
        self.model.apply(batch)
        self.history[version] = self.model.copy()
        assert self.shard.version == version
        return version

    def check(self) -> None:
        assert self.shard.size == len(self.model.rows)
        self.model.check_shard(self.shard, QUERIES)

    def check_history(self, since: int = 1) -> None:
        for version in range(since, self.shard.version + 1):
            self.history[version].check_shard(self.shard, QUERIES, as_of=version)


def merge_all(shard: Shard) -> None:
    """Merge until nothing is pending."""
    while shard.merge():
        pass
