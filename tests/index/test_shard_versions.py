import itertools
import threading

import numpy as np
import pyarrow as pa
import pytest

from raysys.index import Metric, _shard, _slot_rows
from raysys.index._change_record import ChangeBatch
from raysys.index._shard import ShardCapture
from raysys.index._slot_rows import VersionExpiredError
from tests.index._exact import (
    METRIC,
    METRICS,
    QUERIES,
    SCHEMA,
    Pair,
    exact_settings,
    merge_all,
    shard_of_batch,
)


@pytest.fixture(autouse=True)
def _long_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions expire by the clock in the test of expiry alone."""
    monkeypatch.setattr(_slot_rows, "HORIZON_S", 1e9)


@METRIC
def test_compaction_drops_ended_rows_and_keeps_the_answers(metric: Metric) -> None:
    pair = Pair(metric)
    pair.apply(range(30, 60), deleted=range(10))
    merge_all(pair.shard)
    pair.apply(range(55, 65))
    assert pair.shard.counts()["tombstones"] > 0
    pair.shard.compact()
    assert (pair.shard.counts()["tombstones"], pair.shard.pending) == (0, 0)
    assert pair.shard._rows.length == pair.shard.size
    pair.check()
    pair.apply([1, 64], deleted=[63])
    pair.check()


@METRIC
def test_changes_during_a_compaction_are_kept(metric: Metric) -> None:
    pair = Pair(metric, rows=150)
    pair.apply(range(150, 160), deleted=[0, 1])
    merge_all(pair.shard)
    start = pair.shard.version
    changes = iter(
        [
            ([200, 201, 3], [10, 11]),  # of rows that are being moved
            ([201, 10, 202], [200, 4]),  # of rows added meanwhile, and one that returns
            ([], []),
        ]
    )

    def change() -> None:
        pair.apply(*next(changes, ([300], [301])))
        pair.check()
        pair.check_history()

    pair.shard.compact(change)
    pair.check()
    pair.check_history(start)
    merge_all(pair.shard)
    pair.check()
    pair.check_history(start)
    assert pair.shard.counts()["tombstones"] == 4
    pair.apply(range(20), deleted=[202])
    pair.check()
    pair.shard.compact()
    pair.check()
    assert pair.shard._rows.length == pair.shard.size


def test_all_rows_may_end_during_a_compaction() -> None:
    pair = Pair(rows=70)
    changes = iter([((), range(35)), ((), range(70))])
    pair.shard.compact(lambda: pair.apply(*next(changes)) and None)
    pair.check()
    pair.check_history()
    pair.apply(range(5))
    pair.check()


@METRIC
def test_queries_as_of_earlier_versions(metric: Metric) -> None:
    pair = Pair(metric)
    pair.apply(range(38, 50), deleted=[0, 5, 7])
    pair.apply([45, 46, 0], deleted=[47, 30, 2])  # rows that never were in the graph end
    pair.apply(deleted=[46, 0, 1])
    pair.apply([46, 60])
    pair.check_history()
    while pair.shard.merge(3):
        pair.check_history()
    pair.apply(deleted=list(pair.model.rows))
    pair.check_history()


def test_queries_as_of_earlier_versions_after_deletes_in_any_order() -> None:
    # The slots of what has ended, in the order of the deletes, may look like a range.
    for order in itertools.permutations([5, 0, 7]):
        pair = Pair(rows=8)
        for number in order:
            pair.apply(deleted=[number])
        pair.check_history()


def test_a_query_as_of_a_future_version_answers_for_the_present() -> None:
    pair = Pair()
    assert pair.shard.search(QUERIES, 3, as_of=99)[0] == 1


def test_versions_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(_slot_rows, "HORIZON_S", 10.0)
    monkeypatch.setattr(_slot_rows.time, "monotonic", lambda: now)
    pair = Pair()
    for _ in range(5):
        now += 4.0
        pair.apply([70], deleted=[pair.shard.version])
    # At 20 s: deaths at 4 and 8 s, of versions 2 and 3, are forgotten.
    pair.check_history(3)
    with pytest.raises(VersionExpiredError, match=r"version 2 has expired, the oldest .* is 3"):
        pair.shard.search(QUERIES, 3, as_of=2)
    with pytest.raises(VersionExpiredError):
        pair.shard.search(QUERIES, 3, filters=["True"] * len(QUERIES), as_of=2)


def test_versions_before_a_compaction_expire() -> None:
    pair = Pair()
    pair.apply(deleted=[3])
    pair.apply(range(50, 60))
    pair.shard.compact(lambda: pair.apply([50], deleted=[7]) and None)
    with pytest.raises(VersionExpiredError):
        pair.shard.search(QUERIES, 3, as_of=2)
    pair.check_history(3)


def test_compaction_is_needed_when_too_many_rows_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_shard, "_MIN_TOMBSTONES", 10)
    pair = Pair()
    pair.apply(deleted=range(10))
    assert not pair.shard.needs_compaction
    pair.apply(deleted=[10])
    assert pair.shard.needs_compaction
    pair.shard.compact()
    assert not pair.shard.needs_compaction
    # Rows that end before they come into the graph are no tombstones, and take room too.
    for _ in range(30):
        pair.apply([99])
    merge_all(pair.shard)
    assert pair.shard.counts()["tombstones"] == 0
    assert pair.shard.needs_compaction
    pair.shard.compact()
    assert pair.shard._rows.length == pair.shard.size == 30
    pair.check()


def test_a_capture_is_consistent_despite_changes() -> None:
    pair = Pair()
    pair.apply([50, 51], deleted=[2])
    before = pair.model.copy()
    captured: list[ShardCapture] = []

    def write(state: ShardCapture) -> None:
        pair.apply(range(45, 5000), deleted=[3, 51])  # and all arrays grow
        captured.append(state)

    pair.shard.capture(write)
    (state,) = captured
    assert (state.version, state.merged, len(state.ids)) == (2, 40, 42)
    alive = np.delete(np.arange(42), state.deleted)
    assert dict(zip(state.ids[alive].tolist(), state.vectors[alive].tolist(), strict=True)) == {
        number: row["vector"].tolist() for number, row in before.rows.items()
    }
    assert state.table["id"].to_pylist() == state.ids.tolist()
    years = state.table["year"].take(alive).to_pylist()
    assert dict(zip(state.ids[alive].tolist(), years, strict=True)) == {
        number: row["year"] for number, row in before.rows.items()
    }


def test_merging_and_compaction_wait_for_a_capture() -> None:
    pair = Pair()
    pair.apply([50])
    done: list[str] = []
    threads = [
        threading.Thread(target=lambda: (pair.shard.merge(), done.append("merge"))),
        threading.Thread(target=lambda: (pair.shard.compact(), done.append("compact"))),
    ]

    def write(_: ShardCapture) -> None:
        for thread in threads:
            thread.start()
        pair.check()
        assert (done, pair.shard.pending) == ([], 1)

    pair.shard.capture(write)
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(done) == ["compact", "merge"]
    pair.check()


@METRIC
def test_random_changes_merges_and_compactions_keep_all_versions(metric: Metric) -> None:
    rng = np.random.default_rng(METRICS.index(metric))
    pair, known = Pair(metric, rows=30), 1
    for _ in range(40):
        match rng.integers(0, 6):
            case 0:
                pair.shard.merge(int(rng.integers(1, 6)))
            case 1 if rng.random() < 0.4:
                known = pair.shard.version
                pair.shard.compact(lambda: pair.apply(*_some(rng)) and None)
            case _:
                pair.apply(*_some(rng))
        pair.check()
        version = int(rng.integers(known, pair.shard.version + 1))
        pair.history[version].check_shard(pair.shard, QUERIES[:1], as_of=version)


def _some(rng: np.random.Generator) -> tuple[list[int], list[int]]:
    drawn = rng.permutation(45)[: rng.integers(0, 8)].tolist()
    cut = int(rng.integers(0, len(drawn) + 1))
    return drawn[:cut], drawn[cut:]


def test_readers_see_each_batch_as_a_whole() -> None:
    settings, ids = exact_settings(), np.arange(20)

    def batch(version: int) -> ChangeBatch:
        vectors = np.full((20, 4), version, np.float32)
        years = pa.table({"year": [version] * 20, "name": ["a"] * 20}, SCHEMA)
        return ChangeBatch(ids, vectors, years, np.array([], np.int64))

    shard, done = shard_of_batch(settings, batch(1)), threading.Event()
    errors: list[object] = []

    def read(filters: list[str | None] | None, back: int) -> None:
        zero = np.zeros((1, 4), np.float32)
        while not done.is_set():
            as_of = shard.version - back if back else None
            try:
                version, nearest, distances = shard.search(zero, 21, None, filters, as_of)
            except VersionExpiredError:
                continue
            if sorted(nearest[0].tolist()) != [-1, *range(20)] or set(distances[0].tolist()) != {
                4.0 * version**2,
                np.inf,
            }:
                errors.append((version, nearest, distances))

    def keep_house() -> None:
        while not done.is_set():
            shard.merge()
            if shard.pending == 0:
                shard.compact()

    works = [
        threading.Thread(target=read, args=(None, 0)),
        threading.Thread(target=read, args=(["'a' in name"], 0)),
        threading.Thread(target=read, args=(None, 3)),
        threading.Thread(target=keep_house),
    ]
    for work in works:
        work.start()
    for version in range(2, 150):
        shard.apply(version, batch(version))
    done.set()
    for work in works:
        work.join(timeout=30)
    assert not errors
