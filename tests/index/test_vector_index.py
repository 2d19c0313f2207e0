import os
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from raysys.data import Table
from raysys.errors import DataError, ResourceError, SettingsError, UnavailableError
from raysys.index import VectorIndex, _actor_names, vector_table
from raysys.storage import Storage
from tests.index.films import DIM, FILMS, IDS, QUERIES, SIZE, VECTORS, YEARS, axis, until, versions

pytestmark = pytest.mark.usefixtures("ray_cluster")


def _table(blocks: list[pa.Table]) -> Table:
    parts = [Table.load(block.slice) for block in blocks]
    return Table(
        tuple(ref for part in parts for ref in part.blocks()),
        tuple(meta for part in parts for meta in part.metas()),
    )


def _exact(k: int, mask: np.ndarray | None = None) -> np.ndarray:
    scores = QUERIES @ VECTORS.T
    if mask is not None:
        scores[:, ~mask] = -np.inf
    return IDS[np.argsort(-scores, axis=1)[:, :k]]


def _recall(ids: np.ndarray, truth: np.ndarray) -> float:
    hits = [len(set(ours) & set(best)) for ours, best in zip(ids, truth, strict=True)]
    return sum(hits) / truth.size


@pytest.fixture(scope="module")
def shared_storage(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="module")
def films(shared_storage: Storage) -> Iterator[VectorIndex]:
    """Two shards, from a Table of three blocks; not changed by tests."""
    blocks = [FILMS.slice(start, SIZE // 3) for start in range(0, SIZE, SIZE // 3)]
    index = VectorIndex.build("films", _table(blocks), shared_storage, shards=2)
    yield index
    index.close()


@pytest.fixture(scope="module")
def changing(shared_storage: Storage) -> Iterator[VectorIndex]:
    """Two shards, from arrays, by inner product; the first rows are far from `axis`."""
    table = vector_table(
        np.arange(1000, 1100), -np.abs(VECTORS[:100]), {"value": np.zeros(100, np.int64)}
    )
    index = VectorIndex.build("changing", table, shared_storage, metric="ip", shards=2)
    yield index
    index.close()


@pytest.fixture(scope="module")
def single(shared_storage: Storage) -> Iterator[VectorIndex]:
    """A single shard."""
    index = VectorIndex.build("single", FILMS, shared_storage, shards=1)
    yield index
    index.close()


# --- queries ---


@pytest.mark.parametrize("k", [1, 10, 100])
def test_recall_over_two_shards(films: VectorIndex, k: int) -> None:
    result = films.query(QUERIES, k)
    assert _recall(result.ids, _exact(k)) >= 0.95
    assert [len(set(ids)) for ids in result.ids.tolist()] == [k] * len(QUERIES)
    assert (np.diff(result.distances, axis=1) >= 0).all()
    assert result.missing_shards == ()
    true = np.einsum("qd,qkd->qk", QUERIES, VECTORS[(result.ids - 3) // 7])
    np.testing.assert_allclose(result.distances, 1 - true, atol=1e-5)


def test_more_neighbours_than_rows_are_padded(films: VectorIndex) -> None:
    assert films.size == SIZE
    result = films.query(QUERIES[:2], SIZE + 10)
    assert [sorted(row) for row in result.ids[:, :SIZE].tolist()] == [IDS.tolist()] * 2
    assert (result.ids[:, SIZE:] == -1).all()
    assert np.isinf(result.distances[:, SIZE:]).all()


def test_empty_and_large_batches_of_queries(films: VectorIndex) -> None:
    assert films.query(QUERIES[:0], 3).ids.shape == (0, 3)
    many, texts = np.tile(QUERIES, (30, 1)), np.tile(["year < 1950", "year >= 1950"], 750)
    result = films.query(many, 3, filters=texts)
    assert result.ids.shape == (1500, 3)
    assert ((YEARS[(result.ids - 3) // 7] < 1950) == (np.arange(1500) % 2 == 0)[:, None]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((QUERIES[0], 3), r"vectors\[None, :\]"),
        ((QUERIES[:, :3], 3), "vectors of dimension 16; given: 3"),
        ((np.full((1, DIM), np.nan), 3), "finite"),
        ((QUERIES, 0), "positive integers"),
        ((QUERIES, 1.5), "positive integers"),
    ],
)
def test_an_invalid_query_is_refused(
    films: VectorIndex, arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        films.query(*arguments)


def test_one_filter_for_all_queries_or_one_per_query(films: VectorIndex) -> None:
    result = films.query(QUERIES, 10, filters="year >= 1990 and genre == 'War'").ids
    mask = (YEARS >= 1990) & (np.arange(SIZE) % 2 == 1)
    assert _recall(result, _exact(10, mask)) >= 0.95
    assert mask[(result - 3) // 7].all()
    filters = [None if row % 2 else "genre == 'War'" for row in range(len(QUERIES))]
    result = films.query(QUERIES, 10, filters=filters).ids
    assert _recall(result[::2], _exact(10, np.arange(SIZE) % 2 == 1)[::2]) >= 0.95
    assert _recall(result[1::2], _exact(10)[1::2]) >= 0.95
    assert (films.query(QUERIES, 3, filters="year > 3000").ids == -1).all()


@pytest.mark.parametrize("text", ["yaer > 1990", "year >", "year == ", "__import__('os')"])
def test_an_invalid_filter_is_refused_with_the_columns(films: VectorIndex, text: str) -> None:
    with pytest.raises(DataError, match="Columns: id, year, genre"):
        films.query(QUERIES, 3, filters=text)


def test_the_number_of_filters_must_match_the_queries(films: VectorIndex) -> None:
    with pytest.raises(DataError, match="2 filters for 50 vectors"):
        films.query(QUERIES, 3, filters=["year > 1990", None])


def test_rows_are_read_by_id_and_by_filter(films: VectorIndex) -> None:
    table = films.get([IDS[5], 1, IDS[700]]).sort_by("id")
    assert table.column_names == ["id", "vector", "year", "genre"]
    assert table["id"].to_pylist() == [IDS[5], IDS[700]]
    assert table["year"].to_pylist() == [YEARS[5], YEARS[700]]
    np.testing.assert_allclose(table["vector"].to_pylist(), VECTORS[[5, 700]], atol=1e-6)
    assert films.get([]).num_rows == 0
    assert films.matching("year == 1925").tolist() == IDS[YEARS == 1925].tolist()
    assert films.matching(limit=7).size == 7
    assert films.matching("year < 0").size == 0


def test_exact_and_sample_see_both_shards(films: VectorIndex) -> None:
    np.testing.assert_array_equal(films.exact(QUERIES, 10).ids, _exact(10))
    assert films.sample(40).shape == (40, DIM)


def test_connect_returns_the_running_index(films: VectorIndex) -> None:
    connected = VectorIndex.connect("films")
    assert (connected.settings, connected.schema) == (films.settings, films.schema)
    np.testing.assert_array_equal(connected.query(QUERIES, 10).ids, films.query(QUERIES, 10).ids)
    with pytest.raises(
        UnavailableError, match=r"index 'filns' is not running .*films.*Index.build"
    ):
        VectorIndex.connect("filns")


def test_actors_are_named_and_report_metrics(films: VectorIndex) -> None:
    named = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    assert {"index:films", "index:films:0.0", "index:films:1.0"} <= named
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    tags = r'{[^}]*index="films"[^}]*shard="[01]"'
    names = ["rows", "pending", "tombstones", "version", "lag", "query_seconds_count"]

    def all_reported() -> bool:
        films.query(QUERIES, 3)
        with urllib.request.urlopen(url, timeout=30) as reply:
            text = reply.read().decode()
        rows = re.findall(rf"ray_raysys_index_rows{tags}[^}}]*}} ([0-9.]+)", text)
        is_complete = all(re.search(f"ray_raysys_index_{name}{tags}", text) for name in names)
        return is_complete and sum(map(float, rows)) == SIZE

    until(all_reported, 60.0)


def test_a_build_prints_and_checks_the_required_memory(
    shared_storage: Storage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ray.cluster_resources()
    monkeypatch.setattr(ray, "cluster_resources", lambda: before | {"memory": 1000.0})
    with pytest.raises(ResourceError, match=r"requires about .* GiB .*900 rows .*fewer replicas"):
        VectorIndex.build("large", FILMS, shared_storage)
    assert "index large: 900 rows of 16 numbers, shards=1, replicas=1; requires about" in (
        capsys.readouterr().out
    )
    assert "large" not in _actor_names.indexes()


def test_an_index_is_passed_to_a_task(films: VectorIndex) -> None:
    ask = ray.remote(lambda index: index.query(QUERIES, 10).ids)
    np.testing.assert_array_equal(ray.get(ask.remote(films)), films.query(QUERIES, 10).ids)


# --- invalid arguments ---


def _bad(**changed: Any) -> pa.Table:
    table = FILMS.slice(0, 2)
    for name, column in changed.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, column)
    return table


def _lists(values: Any, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(values, kind or pa.list_(pa.float32(), DIM))


ZEROS, ONES = [0.0] * DIM, [1.0] * DIM
BAD_ROWS = {
    "text ids": (_bad(id=pa.array(["a", "b"])), "columns `id`"),
    "an id twice": (_bad(id=pa.array([4, 4])), r"such as \[4\]"),
    "id -1": (_bad(id=pa.array([-1, 4])), "absence"),
    "no id": (_bad(id=pa.array([None, 4], pa.int64())), "missing"),
    "no vector column": (FILMS.slice(0, 2).drop_columns("vector"), "columns `id`"),
    "vectors of any length": (
        _bad(vector=_lists([ONES, ONES], pa.list_(pa.float32()))),
        "same length",
    ),
    "a missing vector": (_bad(vector=_lists([ONES, None])), "missing"),
    "a missing number": (_bad(vector=_lists([ONES, [None] * DIM])), "missing"),
    "NaN": (_bad(vector=_lists([ONES, [float("nan")] * DIM])), "finite"),
    "infinity": (_bad(vector=_lists([ONES, [1e39] * DIM], pa.list_(pa.float64(), DIM))), "finite"),
    "no direction": (_bad(vector=_lists([ONES, ZEROS])), "zeros"),
}


@pytest.mark.parametrize(("table", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_build_or_upsert_of_invalid_rows_changes_nothing(
    films: VectorIndex, shared_storage: Storage, table: pa.Table, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        VectorIndex.build("films", table, shared_storage, shards=2)
    with pytest.raises(DataError, match=message):
        films.upsert(table)
    assert films.size == SIZE
    assert versions(films) == {1}
    assert VectorIndex.connect("films").query(QUERIES, 3).ids.shape == (50, 3)


def test_an_upsert_requires_every_attribute_and_the_dimension(films: VectorIndex) -> None:
    with pytest.raises(DataError, match=r"missing: \['genre'\], unknown: \['size'\]"):
        films.upsert(FILMS.slice(0, 2).rename_columns(["id", "vector", "year", "size"]))
    with pytest.raises(DataError, match="do not fit year int64"):
        films.upsert(_bad(year=pa.array(["a", "b"])))
    with pytest.raises(DataError, match="dimension 16; given: 3"):
        films.upsert(vector_table([1], np.ones((1, 3)), {"year": [1], "genre": ["War"]}))
    with pytest.raises(DataError, match="ids must be integers"):
        films.delete(["a"])
    assert versions(films) == {1}


def test_an_id_in_two_blocks_is_refused(films: VectorIndex, shared_storage: Storage) -> None:
    blocks = [FILMS.slice(0, 3), FILMS.slice(2, 3)]
    with pytest.raises(DataError, match=rf"such as \[{IDS[2]}\]"):
        VectorIndex.build("films", _table(blocks), shared_storage)
    assert films.size == SIZE


@pytest.mark.parametrize(
    ("options", "message"),
    [({"shards": 0}, "shards"), ({"replicas": -1}, "replicas"), ({"M": 1}, "M: Input"),
     ({"metric": "l1"}, "metric")],
)  # fmt: skip
def test_invalid_settings_are_refused(
    films: VectorIndex, shared_storage: Storage, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        VectorIndex.build("films", FILMS, shared_storage, **options)
    assert films.size == SIZE


def test_a_name_with_a_colon_or_no_rows_are_refused(shared_storage: Storage) -> None:
    with pytest.raises(DataError, match="or contain `:`"):
        VectorIndex.build("films:1", FILMS, shared_storage)
    with pytest.raises(DataError, match="at least one vector"):
        VectorIndex.build("none", FILMS.slice(0, 0), shared_storage)


# --- changes ---


def test_changes_are_visible_at_once_over_both_shards(changing: VectorIndex) -> None:
    size, ids = changing.size, np.arange(200, 220)
    near = np.repeat(axis(0), 20, axis=0)
    version = changing.upsert(vector_table(ids, 5 * near, {"value": np.full(20, 7)}))
    assert versions(changing) == {version}
    assert sorted(changing.query(axis(0), 20).ids[0]) == ids.tolist()
    assert changing.size == size + 20
    # A replaced row loses its old vector.
    assert (
        changing.upsert(vector_table(ids[:5], -near[:5], {"value": np.full(5, 8)})) == version + 1
    )
    assert sorted(changing.query(axis(0), 15).ids[0]) == ids[5:].tolist()
    assert changing.matching("value == 8").tolist() == ids[:5].tolist()
    changing.delete(ids[:15])
    assert sorted(changing.query(axis(0), 5).ids[0]) == ids[15:].tolist()
    assert changing.size == size + 5
    changing.upsert(vector_table(ids[:3], 6 * near[:3], {"value": np.full(3, 9)}))
    assert sorted(changing.query(axis(0), 3).ids[0]) == ids[:3].tolist()
    assert changing.get(ids[:3])["value"].to_pylist() == [9, 9, 9]
    changing.delete(np.append(ids, 999_999))
    assert changing.size == size


def test_empty_changes_make_a_version(changing: VectorIndex) -> None:
    size, before = changing.size, max(versions(changing))
    assert changing.delete([]) == before + 1
    assert changing.upsert(changing.get([])) == before + 2
    assert changing.size == size


def test_readers_see_each_batch_as_a_whole(changing: VectorIndex) -> None:
    ids, ended, written, failed = np.arange(50), threading.Event(), [0], []

    def batch(number: int) -> pa.Table:
        noise = np.random.default_rng(number).normal(scale=0.01, size=(50, DIM))
        return vector_table(
            ids, 10 * axis(number % DIM) + noise, {"value": np.full(50, number + 1)}
        )

    def write() -> None:
        try:
            while not ended.is_set():
                written[0] += 1
                changing.upsert(batch(written[0]))
                time.sleep(0.002)
        except Exception as error:
            failed.append(error)

    changing.upsert(batch(0))
    writer = threading.Thread(target=write)
    writer.start()
    weights = np.arange(1, DIM + 1, dtype=np.float32)[None]
    seen = set()
    try:
        for number in range(200):
            filters = "value > 0" if number % 2 else None
            result = changing.query(weights, 50, ef_search=400, filters=filters)
            assert sorted(result.ids[0]) == ids.tolist()
            values = set(np.round((1 - result.distances[0]) / 10).astype(int).tolist())
            assert len(values) == 1, f"rows of several batches in one answer: {values}"
            seen |= values
    finally:
        ended.set()
        writer.join()
    assert not failed
    assert len(seen) > 1
    assert written[0] > 1
    changing.delete(ids)


# --- one shard ---


def test_a_local_copy_follows_the_changes(single: VectorIndex, films: VectorIndex) -> None:
    local = single.local()
    result = local.query(QUERIES, 10)
    assert _recall(result.ids, _exact(10)) >= 0.95
    new = vector_table([1], -QUERIES[:1], {"year": [2030], "genre": ["War"]})
    version = single.upsert(new)
    until(lambda: local.version >= version)
    assert local.query(-QUERIES[:1], 1, filters="year == 2030").ids.tolist() == [[1]]
    version = single.delete([1])
    until(lambda: local.version >= version)
    assert (local.query(-QUERIES[:1], 1, filters="year == 2030").ids == -1).all()
    with pytest.raises(DataError, match="2 filters for 1 vectors"):
        local.query(QUERIES[:1], 1, filters=[None, None])
    with pytest.raises(DataError, match="positive integers"):
        local.query(QUERIES[:1], 0)
    with pytest.raises(DataError, match="has 2 shards"):
        films.local()


def test_compaction_leaves_no_tombstones(single: VectorIndex) -> None:
    single.delete(IDS[-20:])
    assert single.status()["0.0"]["tombstones"] >= 20
    single.compact()
    assert single.status()["0.0"]["tombstones"] == 0
    assert single.size == SIZE - 20
    assert not set(single.query(QUERIES, 100).ids.ravel()) & set(IDS[-20:])
    single.upsert(FILMS.slice(SIZE - 20))
    assert single.size == SIZE


def test_the_tuned_ef_search_survives_a_killed_replica(single: VectorIndex) -> None:
    tuned = single.tune(0.9, 5, QUERIES)
    assert tuned.recall >= 0.9
    assert tuned.trials[tuned.ef_search][0] == tuned.recall
    with pytest.raises(DataError, match="recall must be in"):
        single.tune(1.5)
    assert single.tune(0.5, sample_size=30).ef_search >= 1
    ef_search = single.tune(0.9, 5, QUERIES).ef_search
    replica = single._router._replicas[0][0]

    def ef() -> tuple[int, int]:
        call = replica.__ray_call__.options(max_task_retries=-1)
        return ray.get(
            call.remote(lambda self: (self._follower.shard.settings.ef_search, os.getpid()))
        )

    before, pid = ef()
    assert before == ef_search
    os.kill(pid, signal.SIGKILL)
    until(lambda: ef()[1] != pid)
    assert ef()[0] == ef_search
    assert VectorIndex.connect("single").settings.ef_search == ef_search
