import numpy as np
import pyarrow as pa
import pytest

from raysys.errors import DataError
from raysys.index import IndexSettings, Metric, _hnsw_graph
from raysys.index._change_record import ChangeBatch
from raysys.index._filter import Filter
from raysys.index._shard import Shard
from tests.index._exact import (
    METRIC,
    METRICS,
    QUERIES,
    SCHEMA,
    Model,
    Pair,
    exact_settings,
    merge_all,
)

# --- large enough that the graph is approximate ---


def _clustered(seed: int, count: int, dim: int = 16) -> np.ndarray:
    centres = np.random.default_rng(0).normal(size=(30, dim))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, 30, count)] + 0.3 * rng.normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


MANY = 3000


@pytest.fixture(scope="module", params=METRICS)
def large(request: pytest.FixtureRequest) -> Shard:
    settings = IndexSettings(metric=request.param, dim=16, ef_search=100)
    attributes = pa.table({"part": pa.array(np.arange(MANY) % 1000)})
    progress: list[int] = []
    shard = Shard.build(
        settings, np.arange(MANY) * 7, _clustered(1, MANY), attributes, 1, progress.append
    )
    assert progress == [2000, 3000]
    return shard


def _recall(ids: np.ndarray, best: np.ndarray) -> float:
    hits = sum(
        len(set(ours) & set(true)) for ours, true in zip(ids.tolist(), best.tolist(), strict=True)
    )
    return hits / best.size


def _true(shard: Shard, queries: np.ndarray, k: int, ids: np.ndarray) -> np.ndarray:
    """Ids of the k nearest among some rows, in doubles."""
    ids, vectors, _ = shard.get(ids)
    left, right = queries.astype(float), vectors.astype(float)
    if shard.settings.metric == "l2":
        far = ((left[:, None] - right[None]) ** 2).sum(axis=2)
    else:
        far = -left @ right.T
    return ids[np.argsort(far, axis=1)[:, :k]]


@pytest.mark.parametrize("k", [1, 10, 100])
def test_recall_of_the_graph_is_high(large: Shard, k: int) -> None:
    queries = _clustered(2, 200)
    version, ids, distances = large.search(queries, k)
    best = _true(large, queries, k, np.arange(MANY) * 7)
    assert version == 1
    assert _recall(ids, best) >= 0.97
    assert _recall(large.exact(queries, k)[0], best) >= 0.999
    assert (np.diff(distances, axis=1) >= -1e-6).all()


@pytest.mark.parametrize("path", ["graph", "exact", "as planned"])
@pytest.mark.parametrize("keeps", [1000, 500, 50, 5, 1, 0])
def test_filtered_queries_return_k_rows_if_k_rows_match(
    large: Shard, keeps: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path != "as planned":
        cost = {"graph": 0.0, "exact": 1e9}[path]
        monkeypatch.setattr(_hnsw_graph, "_PER_CANDIDATE", cost)
    queries, k = _clustered(3, 40), 10
    filters = [f"part < {keeps}"] * len(queries)
    matching = np.flatnonzero(np.arange(MANY) % 1000 < keeps) * 7
    _, ids, distances = large.search(queries, k, filters=filters)
    count = min(k, len(matching))
    assert (ids[:, :count] >= 0).all()
    assert (ids[:, count:] == -1).all()
    assert np.isinf(distances[:, count:]).all()
    assert np.isin(ids[:, :count], matching).all()
    if count:
        assert _recall(ids[:, :count], _true(large, queries, count, matching)) >= 0.95
    assert sorted(large.matching(f"part < {keeps}", MANY).tolist()) == matching.tolist()
    assert len(large.matching(f"part < {keeps}", 7)) == min(7, len(matching))


@pytest.mark.parametrize("path", ["graph", "exact"])
def test_filters_apply_to_rows_in_and_beside_the_graph(
    large: Shard, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hnsw_graph, "_PER_CANDIDATE", {"graph": 0.0, "exact": 1e9}[path])
    settings, attributes = large.settings, pa.table({"part": pa.array(np.arange(2000) % 2)})
    shard = Shard.build(settings, np.arange(2000), _clustered(1, 2000), attributes, 1)
    extra = pa.table({"part": pa.array([0, 1] * 50)})
    vectors = _clustered(4, 100)
    removed = np.arange(0, 500)
    shard.apply(2, ChangeBatch(np.arange(5000, 5100), vectors, extra, removed))
    _, ids, _ = shard.search(vectors, 10, filters=["part == 0"] * 100)
    alive = np.concatenate([np.arange(500, 2000, 2), np.arange(5000, 5100, 2)])
    assert np.isin(ids, alive).all()
    assert _recall(ids, _true(shard, vectors, 10, alive)) >= 0.95
    assert (ids[::2, 0] == np.arange(5000, 5100, 2)).all()


def test_filters_see_integers_of_any_size_as_rows_arrive() -> None:
    shard = Shard.empty(exact_settings(), pa.schema({"price": pa.int64()}))
    prices = [1, -128, 127, 40_000, -(2**31), 2**31, 2**62, 5]
    for number, price in enumerate(prices):
        vectors = np.full((1, 4), number, np.float32)
        rows = pa.table({"price": pa.array([price])})
        none = np.empty(0, np.int64)
        shard.apply(number + 1, ChangeBatch(np.array([number]), vectors, rows, none))
        for low in (-(2**31), -5, 127, 2**31):
            _, ids, _ = shard.search(vectors, 8, filters=[f"price >= {low}"])
            matching = [i for i in range(number + 1) if prices[i] >= low]
            assert sorted(ids[ids >= 0]) == matching
        if number % 2:
            merge_all(shard)


def test_answers_are_in_the_order_of_the_queries(large: Shard) -> None:
    queries = _clustered(6, 300)
    _, together, far = large.search(queries, 3)
    for row in (0, 127, 128, 299):
        _, alone, _ = large.search(queries[row : row + 1], 3)
        assert together[row].tolist() == alone[0].tolist()
    filters = [None if row % 3 == 0 else f"part >= {row % 3}" for row in range(300)]
    _, mixed, distances = large.search(queries, 3, filters=filters)
    assert (mixed[::3] == together[::3]).all()
    np.testing.assert_allclose(distances[::3], far[::3], atol=1e-6)
    for row in (1, 2, 298, 299):
        _, alone, _ = large.search(queries[row : row + 1], 3, filters=[filters[row]])
        assert mixed[row].tolist() == alone[0].tolist()


# --- small enough that answers are exact ---


@METRIC
def test_answers_are_exact_where_the_graph_is_small(metric: Metric) -> None:
    pair = Pair(metric)
    pair.check()
    queries = np.concatenate([QUERIES, np.zeros((1, 4), np.float32)])
    pair.model.check_shard(pair.shard, queries)
    for k in (1, 7, 50):
        pair.model.check(*pair.shard.exact(queries, k), queries, k)


@METRIC
def test_an_empty_shard_answers_with_padding_and_accepts_rows(metric: Metric) -> None:
    pair = Pair(metric, rows=0)
    for shard in (pair.shard, Shard.empty(pair.settings, SCHEMA, 1)):
        pair.shard, pair.model = shard, Model(pair.settings)
        pair.check()
        assert shard.matching(None, 5).tolist() == []
        assert shard.sample(5, 0).shape == (0, 4)
        shard.compact()
        assert shard.merge() == 0
        pair.apply(range(10))
        pair.check()
        merge_all(shard)
        pair.check()


def test_an_empty_batch_has_an_empty_answer() -> None:
    shard = Pair().shard
    none = np.empty((0, 4), np.float32)
    for filters in (None, []):
        _, ids, distances = shard.search(none, 3, filters=filters)
        assert ids.shape == distances.shape == (0, 3)


@METRIC
def test_changes_are_visible_at_once_and_after_each_merge(metric: Metric) -> None:
    pair = Pair(metric)
    pair.apply(range(35, 60), deleted=range(5))
    pair.apply([100, 1], deleted=[50, 39, 7777])
    assert pair.shard.pending == 27
    pair.check()
    while moved := pair.shard.merge(4):
        assert moved <= 4
        pair.check()
    assert (pair.shard.pending, pair.shard.counts()["tombstones"]) == (0, 10)
    # The slot of id 50 ended before it came into the graph: it is no tombstone.
    assert pair.shard.size == len(pair.model.rows)


@METRIC
def test_a_deleted_id_can_be_added_again(metric: Metric) -> None:
    pair = Pair(metric)
    pair.apply(deleted=range(40))
    assert pair.shard.size == 0
    pair.check()
    pair.apply(range(40))
    pair.check()
    pair.apply(deleted=range(0, 40, 2))
    pair.apply(range(0, 40, 2))
    merge_all(pair.shard)
    pair.check()
    pair.apply(deleted=[3])
    pair.apply([3])
    pair.apply(deleted=[3])
    pair.check()


def test_a_replaced_row_loses_its_old_vector_and_attributes() -> None:
    pair = Pair()
    for merged in (False, True):
        pair.apply([5])
        if merged:
            merge_all(pair.shard)
        ids, vectors, attributes = pair.shard.get(np.array([5]))
        row = pair.model.rows[5]
        assert ids.tolist() == [5]
        np.testing.assert_array_equal(vectors[0], row["vector"])
        assert attributes.to_pylist() == [{"year": row["year"], "name": row["name"]}]
        pair.check()


def test_rows_are_read_by_id_and_sampled() -> None:
    pair = Pair()
    pair.apply([50, 51], deleted=[1])
    ids, vectors, attributes = pair.shard.get(np.array([50, 1, 7, 999, 7]))
    assert ids.tolist() == [50, 7, 7]
    for number, vector, row in zip(ids.tolist(), vectors, attributes.to_pylist(), strict=True):
        assert pair.model.rows[number] == {**row, "vector": pytest.approx(vector)}
    assert pair.shard.sample(5, 0).shape == (5, 4)
    assert pair.shard.sample(500, 0).shape == (41, 4)
    np.testing.assert_array_equal(pair.shard.sample(5, 1), pair.shard.sample(5, 1))
    assert [len(part) for part in pair.shard.get(np.array([], np.int64))] == [0, 0, 0]


def test_an_invalid_filter_names_the_columns() -> None:
    shard = Pair().shard
    with pytest.raises(DataError, match=r"unknown column 'genre'.*Columns: id, year, name"):
        shard.search(QUERIES, 3, filters=["genre == 'War'"] * len(QUERIES))
    with pytest.raises(DataError, match="a filter must be a string"):
        shard.search(QUERIES, 3, filters=[5] * len(QUERIES))  # type: ignore[list-item]
    Pair().check()


@pytest.mark.parametrize("offset", [0, 100, 1000, 10_000])
def test_squared_distances_far_from_the_origin_are_accurate(offset: int) -> None:
    settings = IndexSettings(metric="l2", dim=16)
    vectors = (offset + np.random.default_rng(0).normal(size=(600, 16))).astype(np.float32)
    shard = Shard.empty(settings, pa.schema([]))
    none = pa.schema([]).empty_table()
    shard.apply(1, ChangeBatch(np.arange(500), vectors[:500], none, np.array([3])))
    model = Model(settings)
    model.rows = {number: {"vector": vectors[number]} for number in range(500) if number != 3}
    for queries in (vectors[500:], vectors[:3]):
        for result in (shard.search(queries, 5)[1:], shard.exact(queries, 5)):
            model.check(*result, queries, 5)


@pytest.mark.parametrize("is_compacted", [False, True])
def test_a_filter_is_evaluated_while_others_search_and_change(
    monkeypatch: pytest.MonkeyPatch, is_compacted: bool
) -> None:
    pair = Pair()
    pair.apply(range(30, 60), deleted=range(5))
    filters = ["year is None", "year == 7 or 'a' in name"]
    evaluate, others = Filter.mask, []

    def slow(predicate: Filter, rows: pa.Table) -> np.ndarray:
        mask = evaluate(predicate, rows)
        if len(rows) and not others:  # as another thread does meanwhile
            others.append(predicate)
            pair.apply([70, 71, 40], deleted=[31])
            pair.shard.search(QUERIES, 5)
            if is_compacted:
                pair.shard.compact()
        return mask

    monkeypatch.setattr(Filter, "mask", slow)
    _, ids, distances = pair.shard.search(QUERIES[:2], 5, filters=filters)
    assert others
    pair.model.check(ids, distances, QUERIES[:2], 5, filters)
    others.clear()
    matching = pair.shard.matching("year != 3", 99)
    assert sorted(matching.tolist()) == sorted(
        number for number, row in pair.model.rows.items() if row["year"] not in (None, 3)
    )
    pair.check()


def test_masks_of_more_filters_than_are_remembered() -> None:
    pair = Pair()
    filters: list[str | None] = [f"year == {n} or 'a' in name" for n in range(60)] + [None]
    expected = [pair.shard.search(QUERIES[:1], 9, filters=[text])[1][0] for text in filters]
    _, ids, _ = pair.shard.search(np.repeat(QUERIES[:1], 61, axis=0), 9, filters=filters)
    np.testing.assert_array_equal(ids, expected)
    assert len(pair.shard._conditions._masks) == 32
