import dataclasses
import os
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from raysys.data import Table
from raysys.errors import DataError, ResourceError, SettingsError, StorageError, UnavailableError
from raysys.index import VectorIndex, _build, vector_table
from raysys.storage import Storage

pytestmark = pytest.mark.usefixtures("ray_cluster")

SIZE, DIM, CLUSTERS = 900, 16, 30


def _clustered(seed: int, count: int) -> np.ndarray:
    """Vectors around the same centres whatever the seed: float32 `(count, DIM)`."""
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, DIM))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, CLUSTERS, count)] + 0.3 * rng.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = _clustered(1, SIZE), _clustered(2, 50)
IDS = np.arange(SIZE) * 7 + 3  # not row numbers
YEARS = np.arange(SIZE) % 100 + 1920
FILMS = vector_table(
    IDS, VECTORS, {"year": YEARS, "genre": [["Drama", "War"][i % 2] for i in range(SIZE)]}
)


def _table(blocks: list[pa.Table]) -> Table:
    parts = [Table.load(block.slice) for block in blocks]
    return Table(
        tuple(ref for part in parts for ref in part.blocks()),
        tuple(meta for part in parts for meta in part.metas()),
    )


def _axis(number: int) -> np.ndarray:
    """A unit vector along an axis, float32 `(1, DIM)`."""
    return np.eye(DIM, dtype=np.float32)[[number]]


def _exact(k: int, mask: np.ndarray | None = None) -> np.ndarray:
    scores = QUERIES @ VECTORS.T
    if mask is not None:
        scores[:, ~mask] = -np.inf
    return IDS[np.argsort(-scores, axis=1)[:, :k]]


def _recall(ids: np.ndarray, truth: np.ndarray) -> float:
    hits = [len(set(ours) & set(best)) for ours, best in zip(ids, truth, strict=True)]
    return sum(hits) / truth.size


def _until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.05)


def _versions(index: VectorIndex) -> set[int]:
    return {counts["version"] if counts else -1 for counts in index.status().values()}


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
    """Two shards, from arrays, by inner product; the first rows are far from `_axis`."""
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
    ids, distances, _ = films.query(QUERIES[:2], SIZE + 10)
    assert [sorted(row) for row in ids[:, :SIZE].tolist()] == [IDS.tolist()] * 2
    assert (ids[:, SIZE:] == -1).all()
    assert np.isinf(distances[:, SIZE:]).all()


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

    _until(all_reported, 60.0)


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
    assert "large" not in _running()


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
    assert _versions(films) == {1}
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
    assert _versions(films) == {1}


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
    near = np.repeat(_axis(0), 20, axis=0)
    version = changing.upsert(vector_table(ids, 5 * near, {"value": np.full(20, 7)}))
    assert _versions(changing) == {version}
    assert sorted(changing.query(_axis(0), 20).ids[0]) == ids.tolist()
    assert changing.size == size + 20
    # A replaced row loses its old vector.
    assert (
        changing.upsert(vector_table(ids[:5], -near[:5], {"value": np.full(5, 8)})) == version + 1
    )
    assert sorted(changing.query(_axis(0), 15).ids[0]) == ids[5:].tolist()
    assert changing.matching("value == 8").tolist() == ids[:5].tolist()
    changing.delete(ids[:15])
    assert sorted(changing.query(_axis(0), 5).ids[0]) == ids[15:].tolist()
    assert changing.size == size + 5
    changing.upsert(vector_table(ids[:3], 6 * near[:3], {"value": np.full(3, 9)}))
    assert sorted(changing.query(_axis(0), 3).ids[0]) == ids[:3].tolist()
    assert changing.get(ids[:3])["value"].to_pylist() == [9, 9, 9]
    changing.delete(np.append(ids, 999_999))
    assert changing.size == size


def test_empty_changes_make_a_version(changing: VectorIndex) -> None:
    size, before = changing.size, max(_versions(changing))
    assert changing.delete([]) == before + 1
    assert changing.upsert(changing.get([])) == before + 2
    assert changing.size == size


def test_readers_see_each_batch_as_a_whole(changing: VectorIndex) -> None:
    ids, ended, written, failed = np.arange(50), threading.Event(), [0], []

    def batch(number: int) -> pa.Table:
        noise = np.random.default_rng(number).normal(scale=0.01, size=(50, DIM))
        return vector_table(
            ids, 10 * _axis(number % DIM) + noise, {"value": np.full(50, number + 1)}
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
    _until(lambda: local.version >= version)
    assert local.query(-QUERIES[:1], 1, filters="year == 2030").ids.tolist() == [[1]]
    version = single.delete([1])
    _until(lambda: local.version >= version)
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
    _until(lambda: ef()[1] != pid)
    assert ef()[0] == ef_search
    assert VectorIndex.connect("single").settings.ef_search == ef_search


# --- lifecycle ---


def test_an_index_is_restored_from_its_folder(storage: Storage) -> None:
    def values(index: VectorIndex) -> dict[int, int]:
        table = index.get(np.arange(60))
        assert table.num_rows == index.size == len(set(table["id"].to_pylist()))
        return dict(zip(table["id"].to_pylist(), table["value"].to_pylist(), strict=True))

    def some(ids: range, value: int) -> pa.Table:
        return vector_table(list(ids), VECTORS[ids.start : ids.stop], {"value": [value] * len(ids)})

    with pytest.raises(StorageError, match=r"no snapshot .* available: none"):
        VectorIndex.restore("restored", storage)
    index = VectorIndex.build("restored", some(range(30), 1), storage, shards=2, keep_snapshots=3)
    index.upsert(some(range(20, 40), 2))
    older = index.snapshot()
    assert index.snapshot() == older
    index.upsert(some(range(40, 50), 3))
    index.delete(range(5))
    newer = index.snapshot()
    at_newer = dict.fromkeys(range(5, 20), 1) | dict.fromkeys(range(20, 40), 2)
    at_older = dict.fromkeys(range(5), 1) | at_newer
    at_newer |= dict.fromkeys(range(40, 50), 3)
    assert values(index) == at_newer
    snapshots = VectorIndex.snapshots("restored", storage)
    assert [dataclasses.astuple(snapshot) for snapshot in snapshots] == [
        (1, 30, 2), (older, 40, 2), (newer, 45, 2)
    ]  # fmt: skip
    index.upsert(some(range(50, 60), 4))
    now = at_newer | dict.fromkeys(range(50, 60), 4)
    for wrong in ({"shards": 0}, {"replicas": -1}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            VectorIndex.restore("restored", storage, **wrong)
    with pytest.raises(StorageError, match=r"no snapshot 77 .* available: \[1, "):
        VectorIndex.restore("restored", storage, version=77)
    assert values(index) == now  # which still runs

    again = VectorIndex.restore("restored", storage)
    assert values(again) == now
    with pytest.raises(UnavailableError, match="have ended"):
        index.query(QUERIES, 3)
    assert again.query(VECTORS[55:56], 1).ids.tolist() == [[55]]
    again.delete([55])
    del now[55]

    narrow = VectorIndex.restore("restored", storage, shards=1)
    assert narrow.settings.shards == 1
    assert values(narrow) == now
    assert narrow.query(VECTORS[54:55], 1).ids.tolist() == [[54]]

    past = VectorIndex.restore("restored", storage, version=older)
    assert past.settings.shards == 2
    assert values(past) == at_older
    past.upsert(some(range(50, 60), 5))
    assert values(past) == at_older | dict.fromkeys(range(50, 60), 5)
    # The last three snapshots and the log since remain.
    snapshots = VectorIndex.snapshots("restored", storage)
    assert len(snapshots) == 3
    log = [int(name) for name in storage.names("indexes/restored/log")]
    assert min(log) > snapshots[0].version
    past.close()
    with pytest.raises(UnavailableError, match="have ended"):
        past.query(QUERIES, 3)
    for refused in (past.snapshot, lambda: past.delete([1]), past.status):
        with pytest.raises(UnavailableError, match="index 'restored' is not running"):
            refused()
    past.close()  # does no harm


def test_changes_to_an_index_that_is_being_replaced_do_not_reach_the_new_one(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = VectorIndex.build("anew", FILMS.slice(0, 20), storage, shards=1)
    split = _build._split

    def late(*args: Any) -> Any:
        pieces = split(*args)
        for start in range(20, 80, 20):
            old.upsert(FILMS.slice(start, 20))
        return pieces

    monkeypatch.setattr(_build, "_split", late)
    index = VectorIndex.build("anew", FILMS.slice(0, 10), storage, shards=1)
    index.upsert(FILMS.slice(10, 1))
    assert sorted(index.matching()) == IDS[:11].tolist()
    with pytest.raises(UnavailableError):
        old.upsert(FILMS.slice(0, 1))
    index.close()


def test_an_index_without_rows_is_restored(storage: Storage) -> None:
    index = VectorIndex.build("emptied", FILMS.slice(0, 3), storage, shards=1)
    index.delete(IDS[:3])
    index = VectorIndex.restore("emptied", storage, shards=2)
    assert index.size == 0
    assert (index.query(QUERIES, 2).ids == -1).all()
    index.upsert(FILMS.slice(0, 3))
    assert index.query(VECTORS[:1], 1).ids.tolist() == [[IDS[0]]]
    index.close()


def test_a_replica_answers_while_another_restarts(shared_storage: Storage, tmp_path: Path) -> None:
    old = VectorIndex.build("run-1", FILMS.slice(0, 20), shared_storage, shards=1)
    index = VectorIndex.build("run-2", FILMS.slice(0, 20), Storage(tmp_path), shards=1, replicas=2)
    single = VectorIndex.connect("single") if "single" in _running() else None
    index.close_others("run-")
    assert "run-1" not in _running()
    _until(lambda: _is_refused(old))
    assert single is None or single.size == SIZE

    for victim in index._router._replicas[0]:
        pid = ray.get(victim.__ray_call__.remote(lambda _: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        for number in range(20):
            version = index.upsert(
                vector_table([1], _axis(0), {"year": [number], "genre": ["War"]})
            )
            result = index.query(_axis(0), 1, filters=f"year == {number}", timeout_s=10.0)
            assert result.ids.tolist() == [[1]], f"{number} was acknowledged, and is not seen"
        _until(lambda version=version: _versions(index) == {version})
    index.close()


def _is_refused(index: VectorIndex) -> bool:
    try:
        index.query(QUERIES, 3)
    except UnavailableError:
        return True
    return False  # its process is about to end


def _running() -> set[str]:
    from raysys.index import _actor_names as _names

    return set(_names.indexes())
