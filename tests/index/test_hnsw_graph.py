"""The C++ graph and the exact search beside it, against NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysys.index import IndexSettings, Metric, _hnsw_graph
from raysys.index._hnsw_graph import HnswGraph, exact_nearest, is_quantizable

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(2_000, 37)).astype(np.float32)  # a length that no register divides
QUERIES = RNG.normal(size=(50, 37)).astype(np.float32)
METRIC = pytest.mark.parametrize("metric", ["l2", "ip"])


def _distances(metric: Metric) -> np.ndarray:
    queries, rows = QUERIES.astype(float), ROWS.astype(float)
    if metric == "ip":
        return 1 - queries @ rows.T
    return ((queries[:, None] - rows[None]) ** 2).sum(axis=2)


def _graph(metric: Metric = "l2") -> HnswGraph:
    graph = HnswGraph(IndexSettings(metric=metric, dim=37), ROWS)
    graph.add(np.arange(len(ROWS)), ROWS)
    return graph


def _recall(slots: np.ndarray, metric: Metric, mask: np.ndarray) -> float:
    far = np.where(mask, _distances(metric), np.inf)
    truth = np.argsort(far, axis=1)[:, : slots.shape[1]]
    return float((slots[:, :, None] == truth[:, None, :]).any(axis=1).mean())


@METRIC
def test_filters_of_each_query_are_exact_and_recall_is_high(
    metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, price = _graph(metric), np.arange(len(ROWS)) % 100
    graph.delete(np.arange(0, len(ROWS), 3))
    alive = np.arange(len(ROWS)) % 3 > 0
    monkeypatch.setattr(_hnsw_graph, "_PER_CANDIDATE", 0.0)  # never exact
    filters: list[Any] = [((price, low, low + 49),) for low in range(50)]
    slots, distances = graph.search(ROWS, QUERIES, 10, 200, filters)
    masks = np.stack([(price >= low) & (price < low + 50) & alive for low in range(50)])
    assert np.take_along_axis(masks, slots, axis=1).all()
    assert _recall(slots, metric, masks) > 0.97
    expected = np.take_along_axis(_distances(metric), slots, axis=1)
    np.testing.assert_allclose(distances, expected, rtol=1e-4, atol=1e-4)
    alone = [graph.search(ROWS, QUERIES[i : i + 1], 10, 200, [filters[i]])[0] for i in range(50)]
    assert np.concatenate(alone).tolist() == slots.tolist()


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
def test_conditions_on_each_type(dtype: str) -> None:
    column = (np.arange(len(ROWS)) % (2 if dtype == "?" else 120)).astype(dtype)
    visible = ((np.arange(len(ROWS)), 100, 1900),)
    filters: list[Any] = [((column, 1, 17), (column, 0, 9)), None] * 25
    slots, distances = exact_nearest(ROWS, len(ROWS), QUERIES, 10, "l2", filters, visible)
    mask = (np.arange(len(ROWS)) >= 100) & (np.arange(len(ROWS)) <= 1900)
    matches = mask & (column >= 1) & (column <= 9)
    far = _distances("l2")
    for query in range(50):
        few = np.flatnonzero(mask if query % 2 else matches)
        best = few[np.argsort(far[query, few])[:10]]
        assert slots[query].tolist() == best.tolist()
    np.testing.assert_allclose(distances, np.take_along_axis(far, slots, axis=1), rtol=1e-4)


def test_fewer_matches_than_k_are_padded() -> None:
    column = np.arange(len(ROWS))
    slots, distances = exact_nearest(
        ROWS, np.array([3, 7, 900]), QUERIES[:1], 5, "l2", [((column, 4, 999),)]
    )
    assert sorted(slots[0].tolist()) == [-1, -1, -1, 7, 900]
    assert np.isinf(distances[0, 2:]).all()


@METRIC
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_rows_are_quantized_only_where_their_neighbours_stay(metric: Metric, offset: float) -> None:
    rows, queries = (ROWS + np.float32(offset), QUERIES + np.float32(offset))
    settings = IndexSettings(metric=metric, dim=37)
    assert is_quantizable(rows, settings) == (offset == 0)
    graph = HnswGraph(settings, rows)
    graph.add(np.arange(len(rows)), rows)
    slots, distances = graph.search(rows, queries, 10, 64)
    if metric == "l2":  # an inner product with an offset is the same for nearly all rows
        assert _recall(slots, metric, np.ones_like(rows[:, 0], bool)) > 0.95
    near = rows[slots].astype(float)
    exact = ((near - queries[:, None]) ** 2).sum(axis=2)
    if metric == "ip":
        exact = 1 - np.einsum("qkd,qd->qk", near, queries.astype(float))
    np.testing.assert_allclose(distances, exact, rtol=1e-4, atol=1e-4)
    assert (np.diff(distances, axis=1) >= 0).all()


def test_an_empty_matrix_and_zeros_are_searched() -> None:
    settings = IndexSettings(metric="l2", dim=37)
    assert not is_quantizable(ROWS[:0], settings)
    assert not is_quantizable(ROWS[:500], settings)  # later rows may be of another kind
    graph = HnswGraph(IndexSettings(metric="l2", dim=37), np.zeros_like(ROWS))
    graph.add(np.arange(3), np.zeros_like(ROWS))
    slots, distances = graph.search(np.zeros_like(ROWS), QUERIES[:1], 4, 10)
    assert sorted(slots[0]) == [-1, 0, 1, 2]
    np.testing.assert_allclose(distances[0, :3], (QUERIES[0] ** 2).sum(), rtol=1e-5)


def test_a_narrow_filter_finds_no_row_outside_the_graph() -> None:
    graph = HnswGraph(IndexSettings(metric="l2", dim=37), ROWS)
    graph.add(np.arange(0, len(ROWS), 2), ROWS)
    graph.delete(np.arange(0, len(ROWS), 4))
    filters: list[Any] = [((np.arange(len(ROWS)), 0, 19),)] * len(QUERIES)
    slots, _ = graph.search(ROWS, QUERIES, 10, 64, filters)
    assert (np.sort(slots) == [-1] * 5 + [2, 6, 10, 14, 18]).all()


@METRIC
def test_a_saved_graph_answers_alike(metric: Metric, tmp_path: Path) -> None:
    graph = _graph(metric)
    graph.save(tmp_path / "graph")
    deleted = np.array([5, 9])
    loaded = HnswGraph.load(IndexSettings(metric=metric, dim=37), tmp_path / "graph", ROWS, deleted)
    assert (loaded.size, loaded.tombstones) == (len(ROWS) - 2, 2)
    graph.delete(np.array([5, 9, 9, 12_345]))
    assert (graph.size, graph.tombstones) == (len(ROWS) - 2, 2)
    for each, other in zip(
        *(g.search(ROWS, QUERIES, 10, 64) for g in (graph, loaded)), strict=True
    ):
        assert each.tolist() == other.tolist()


def test_the_same_rows_give_the_same_graph(tmp_path: Path) -> None:
    for name in ("first", "second"):
        _graph().save(tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize(
    "arrays",
    [
        {"rows": ROWS[:100]}, {"rows": ROWS.astype(np.float64)}, {"rows": ROWS[:, :5]},
        {"queries": QUERIES[:, :5]}, {"filters": [((np.arange(10), 0, 1),)] * 50},
        {"filters": [((np.arange(2000, dtype=np.uint64), 0, 1),)] * 50}, {"filters": []},
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, Any]) -> None:
    chosen = {"rows": ROWS, "queries": QUERIES, "filters": None} | arrays
    with pytest.raises((RuntimeError, ValueError, BufferError)):
        _graph().search(chosen["rows"], chosen["queries"], 10, 64, chosen["filters"])
