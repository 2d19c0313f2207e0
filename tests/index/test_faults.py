"""Killed processes and an unavailable log: acknowledged changes survive."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from raysys.errors import StorageError, UnavailableError
from raysys.index import VectorIndex, vector_table
from raysys.storage import Storage

pytestmark = pytest.mark.usefixtures("ray_cluster")

DIM, SIZE = 8, 200
VECTORS = np.random.default_rng(0).normal(size=(SIZE, DIM)).astype(np.float32)
_ROOT = "indexes/faulty"


@pytest.fixture(scope="module")
def folder(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def index(folder: Path) -> Iterator[VectorIndex]:
    index = VectorIndex.build("faulty", _rows(range(SIZE), 0), Storage(folder), shards=2)
    yield index
    index.close()


def _rows(ids: Any, value: int) -> pa.Table:
    numbers = np.asarray(ids)
    return vector_table(numbers, VECTORS[numbers % SIZE], {"value": np.full(len(numbers), value)})


def _pid(actor: Any) -> int:
    call = actor.__ray_call__.options(max_task_retries=-1)
    return ray.get(call.remote(lambda _: os.getpid()), timeout=60)


def _replica(index: VectorIndex, shard: int) -> Any:
    return index._router._replicas[shard][0]


def _kill(actor: Any) -> int:
    pid = _pid(actor)
    os.kill(pid, signal.SIGKILL)
    return pid


def _until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.05)


def _values(index: VectorIndex, ids: Any) -> dict[int, int]:
    """Values of the existing rows by id; ids are unique."""
    table = index.get(np.asarray(ids))
    assert table.num_rows == len(set(table["id"].to_pylist()))
    return dict(zip(table["id"].to_pylist(), table["value"].to_pylist(), strict=True))


def _versions(index: VectorIndex) -> set[int]:
    return {counts["version"] for counts in index.status().values() if counts}


def _check(index: VectorIndex, ids: Any, value: int) -> None:
    assert _values(index, ids) == dict.fromkeys(ids, value)
    everything = index.query(VECTORS[:1], index.size).ids[0].tolist()
    assert len(set(everything)) == index.size


def test_a_shard_without_replicas_is_left_out_or_waited_for(index: VectorIndex) -> None:
    ids = range(1000, 1020)
    index.upsert(_rows(ids, 1))
    complete = index.query(VECTORS[:3], 10)
    dead = _kill(_replica(index, 1))
    part = index.query(VECTORS[:3], 10, allow_partial=True)
    with pytest.raises(UnavailableError, match=r"shard \[1\] of \[0, 1\] .* within 0.05 s"):
        index.query(VECTORS[:3], 10, timeout_s=0.05)
    assert part.missing_shards == (1,)
    assert (part.ids >= 0).all()
    again = index.query(VECTORS[:3], 10)
    assert again.missing_shards == ()
    np.testing.assert_array_equal(again.ids, complete.ids)
    assert _pid(_replica(index, 1)) != dead
    assert index.query(VECTORS[:3], 10, allow_partial=True).missing_shards == ()
    _check(index, ids, 1)


def test_a_busy_shard_is_not_left_out(index: VectorIndex) -> None:
    def keep_busy(_: Any) -> None:
        time.sleep(2)

    busy = [_replica(index, 1).__ray_call__.remote(keep_busy) for _ in range(20)]
    assert index.query(VECTORS[:3], 10, allow_partial=True).missing_shards == ()
    ray.get(busy)


def test_a_restarted_replica_has_every_change(index: VectorIndex) -> None:
    _kill(_replica(index, 0))
    # The first is under way while it is dead, the others while it comes back and joins.
    started, value = time.monotonic(), 100
    while time.monotonic() < started + 5:
        value += 1
        index.upsert(_rows(range(2000, 2010), value))
        assert set(_values(index, range(2000, 2010)).values()) == {value}
        ids = index.query(VECTORS[:1], 10, filters=f"value == {value}").ids[0]
        assert sorted(ids) == list(range(2000, 2010)), f"{value} was acknowledged"
    _check(index, range(2000, 2010), value)


def test_acknowledged_changes_survive_a_killed_writer(index: VectorIndex) -> None:
    before = index.upsert(_rows(range(3000, 3010), 1))
    dead = _kill(index._writer)
    assert VectorIndex.connect("faulty").upsert(_rows(range(3005, 3015), 2)) == before + 1
    assert _pid(index._writer) != dead
    _check(index, range(3000, 3005), 1)
    _check(index, range(3005, 3015), 2)


def test_batches_are_applied_once_despite_a_killed_writer(index: VectorIndex) -> None:
    acknowledged: list[int] = []
    failed: list[Exception] = []
    versions: list[int] = []

    def write(client: int) -> None:
        try:
            for number in range(40):
                start = 10_000 * client + 10 * number
                versions.append(index.upsert(_rows(range(start, start + 10), client)))
                index.delete([start])
                acknowledged.extend(range(start + 1, start + 10))
                time.sleep(0.01)
        except Exception as error:
            failed.append(error)

    before = max(_versions(index))
    clients = [threading.Thread(target=write, args=(client,)) for client in (1, 2, 3)]
    for client in clients:
        client.start()
    _until(lambda: len(versions) > 10)
    _kill(index._writer)
    for client in clients:
        client.join(60)
    assert not failed
    assert len(acknowledged) == 3 * 40 * 9
    for client in (1, 2, 3):
        mine = range(10_000 * client, 10_000 * client + 400)
        _check(index, [number for number in mine if number % 10], client)
        assert _values(index, [number for number in mine if number % 10 == 0]) == {}
    after = max(_versions(index))
    assert max(versions) <= after <= before + 240


def test_a_batch_that_is_sent_twice_is_applied_once(index: VectorIndex) -> None:
    from raysys.index._change_record import ChangeBatch, encode

    table = _rows(range(4000, 4003), 1)
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, DIM)
    none = np.empty(0, np.int64)
    batch = ChangeBatch(table["id"].to_numpy(), vectors, table.select(["value"]), none)
    record = encode(batch, "a token")
    twice = [index._writer.commit.remote("a token", record) for _ in range(2)]
    first, second = ray.get(twice)
    assert first == second
    index.upsert(_rows(range(4000, 4003), 2))
    index.snapshot()
    _kill(index._writer)
    commit = index._writer.commit.options(max_task_retries=-1)
    assert ray.get(commit.remote("a token", record)) == first
    _check(index, range(4000, 4003), 2)


def test_nothing_changes_if_the_log_cannot_be_written(index: VectorIndex, folder: Path) -> None:
    version = index.upsert(_rows(range(5000, 5010), 1))
    log, aside = folder / _ROOT / "log", folder / _ROOT / "log.aside"
    log.rename(aside)
    log.write_bytes(b"in its place")
    try:
        for refused in (
            lambda: index.upsert(_rows(range(5000, 5020), 2)),
            lambda: index.delete(range(5000, 5010)),
        ):
            with pytest.raises(StorageError, match=r"cannot write the log .*, nothing changed"):
                refused()
        assert _values(index, range(5000, 5020)) == dict.fromkeys(range(5000, 5010), 1)
        assert _versions(index) == {version}
    finally:
        log.unlink()
        aside.rename(log)
    assert index.upsert(_rows(range(5000, 5020), 3)) == version + 1
    _check(index, range(5000, 5020), 3)


def test_a_refused_record_does_not_reappear(index: VectorIndex, folder: Path) -> None:
    def break_flush(self: Any) -> None:
        from raysys.storage import _storage

        flush = _storage._flush

        def broken(path: Path) -> None:
            if path.is_dir():
                _storage._flush = flush
                raise OSError("the folder cannot be flushed")
            flush(path)

        _storage._flush = broken

    version = index.upsert(_rows([6000], 1))
    ray.get(index._writer.__ray_call__.remote(break_flush))
    with pytest.raises(StorageError, match="cannot be flushed"):
        index.upsert(_rows([6000, 6001], 2))
    assert not (folder / _ROOT / f"log/{version + 1:020d}").exists()
    _kill(_replica(index, 0))
    _kill(_replica(index, 1))
    assert index.upsert(_rows([6002], 3)) == version + 1
    assert _values(index, range(6000, 6003)) == {6000: 1, 6002: 3}


def test_a_disconnected_writer_does_not_overwrite_the_record_of_another(
    index: VectorIndex, folder: Path
) -> None:
    version = index.upsert(_rows([6100], 1))

    def forget(self: Any) -> None:  # as if it had been away since the version before
        self._version -= 1
        return ray.get_runtime_context().get_actor_id()

    record = folder / _ROOT / f"log/{version:020d}"
    written = record.read_bytes()
    ray.get(index._writer.__ray_call__.remote(forget))
    assert index.upsert(_rows([6101], 2)) == version + 1  # it ended, and began again from the log
    assert record.read_bytes() == written
    assert _values(index, [6100, 6101]) == {6100: 1, 6101: 2}


def test_a_replica_killed_during_a_snapshot(index: VectorIndex, folder: Path) -> None:
    def hold(self: Any) -> None:
        def write(*_: Any) -> None:
            (folder / "writing").touch()
            time.sleep(600)

        self._files.write_shard = write

    storage = Storage(folder)
    before = [snapshot.version for snapshot in VectorIndex.snapshots("faulty", storage)]
    index.upsert(_rows(range(7000, 7010), 1))
    replica = _replica(index, 1)
    ray.get(replica.__ray_call__.remote(hold))
    failed: list[Exception] = []

    def take() -> None:
        try:
            index.snapshot()
        except Exception as error:
            failed.append(error)

    taking = threading.Thread(target=take)
    taking.start()
    _until((folder / "writing").exists)
    index.upsert(_rows(range(7010, 7020), 1))  # goes on meanwhile
    os.kill(_pid(replica), signal.SIGKILL)
    taking.join(60)
    assert [type(error) for error in failed] == [StorageError]
    assert [snapshot.version for snapshot in VectorIndex.snapshots("faulty", storage)] == before
    index.upsert(_rows(range(7020, 7030), 1))
    _check(index, range(7000, 7030), 1)
    version = index.snapshot()
    assert VectorIndex.snapshots("faulty", storage)[-1].version == version
    _kill(_replica(index, 0))
    _kill(replica)
    _check(index, range(7000, 7030), 1)


def test_actors_restarted_without_storage_retry(index: VectorIndex, folder: Path) -> None:
    index.upsert(_rows(range(9000, 9010), 1))
    root, aside = folder / _ROOT, folder / "aside"
    actors = (index._writer, _replica(index, 0))
    root.rename(aside)
    try:
        for pid in [_pid(actor) for actor in actors]:
            os.kill(pid, signal.SIGKILL)
        time.sleep(3)
    finally:
        aside.rename(root)
    index.upsert(_rows(range(9005, 9015), 2))
    _check(index, range(9000, 9005), 1)
    _check(index, range(9005, 9015), 2)


def test_all_processes_killed_at_once_restart(index: VectorIndex) -> None:
    index.upsert(_rows(range(8000, 8010), 1))
    for actor in (index._writer, _replica(index, 0), _replica(index, 1)):
        _kill(actor)
    index.upsert(_rows(range(8005, 8015), 2))
    _check(index, range(8000, 8005), 1)
    _check(index, range(8005, 8015), 2)
    _check(index, range(2000, 2010), max(_values(index, range(2000, 2010)).values()))


def test_an_isolated_replica_leaves_queries_to_the_other(ray_cluster: None, tmp_path: Path) -> None:
    index = VectorIndex.build("quiet", _rows(range(SIZE), 0), Storage(tmp_path), replicas=2)
    try:
        isolated, healthy = index._router._replicas[0]

        def heard(replica: Any) -> float:
            return float(replica._last_heard)

        # Each hears from its writer repeatedly.
        before = ray.get([replica.__ray_call__.remote(heard) for replica in (isolated, healthy)])
        for replica, last in zip((isolated, healthy), before, strict=True):
            _until(
                lambda replica=replica, last=last: (
                    ray.get(replica.__ray_call__.remote(heard)) > last
                )
            )

        def lose(replica: Any) -> None:
            """As behind a broken link: nothing arrives and nothing leaves."""
            replica._last_heard, replica._join = -1e9, lambda _: None
            replica.apply = lambda *_: time.sleep(120)

        ray.get(isolated.__ray_call__.remote(lose))
        # Not delayed by the isolated replica.
        index.upsert(_rows([1000], 7), timeout_s=40)
        for _ in range(20):
            assert _values(index, [1000]) == {1000: 7}
            fresh = index.query(VECTORS[:1], index.size)
            assert 1000 in fresh.ids[0]
            assert fresh.stale_shards == ()
        _until(lambda: not ray.get(healthy.__ray_call__.remote(lose)))
        assert _values(index, [0]) == {0: 0}  # though no replica hears the writer
        stale = index.query(VECTORS[:1], 1)
        assert stale.ids[0].tolist() == [0]
        assert stale.stale_shards == (0,)
    finally:
        index.close()
