import dataclasses
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from raysys.errors import SettingsError, StorageError, UnavailableError
from raysys.index import VectorIndex, _actor_names, _build, vector_table
from raysys.index._persistence import IndexFiles
from raysys.ray_internals import key_value, process
from raysys.storage import Storage
from tests.index.films import FILMS, IDS, QUERIES, VECTORS, axis, until, versions

pytestmark = pytest.mark.usefixtures("ray_cluster")


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
    log = IndexFiles(storage, "indexes/restored").log_versions()
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


def test_an_index_whose_log_is_lost_takes_no_changes_until_a_snapshot(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    log = tmp_path / "indexes/lost/log"
    index = VectorIndex.build("lost", FILMS.slice(0, 20), storage, shards=1)
    version = index.upsert(FILMS.slice(20, 5))
    shutil.rmtree(log)
    lost = f"{log}, is missing, and with it every change after version 1"
    with pytest.raises(StorageError, match=re.escape(lost)):
        index.upsert(FILMS.slice(25, 1))
    with pytest.raises(StorageError, match=re.escape(lost)):
        VectorIndex.restore("lost", storage)
    assert index.size == 25  # it still runs
    assert index.snapshot() == version
    assert index.upsert(FILMS.slice(25, 1)) == version + 1
    index.close()
    shutil.rmtree(log)
    with pytest.raises(StorageError, match=f"every change after version {version}"):
        VectorIndex.open("lost", storage)
    index = VectorIndex.restore("lost", storage, version=version)
    assert sorted(index.matching()) == IDS[:25].tolist()
    assert index.upsert(FILMS.slice(25, 1)) == version + 1
    index.close()

    rows = tmp_path / f"indexes/lost/snapshots/{version:020d}/0/rows.arrow"
    rows.write_bytes(rows.read_bytes()[:-1] + b"x")
    with pytest.raises(StorageError) as caught:
        VectorIndex.restore("lost", storage)
    assert str(caught.value).startswith(f"cannot restore index 'lost': {rows} is damaged (its che")
    assert str(caught.value).count("\n") == 0
    assert "lost" not in _actor_names.indexes()


def test_an_index_without_rows_is_restored(storage: Storage) -> None:
    index = VectorIndex.build("emptied", FILMS.slice(0, 3), storage, shards=1)
    index.delete(IDS[:3])
    index = VectorIndex.restore("emptied", storage, shards=2)
    assert index.size == 0
    assert (index.query(QUERIES, 2).ids == -1).all()
    index.upsert(FILMS.slice(0, 3))
    assert index.query(VECTORS[:1], 1).ids.tolist() == [[IDS[0]]]
    index.close()


def test_a_replica_answers_while_another_restarts(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = VectorIndex.build("run-1", FILMS.slice(0, 20), storage, shards=1)
    index = VectorIndex.build("run-2", FILMS.slice(0, 20), Storage(tmp_path), shards=1, replicas=2)
    other = VectorIndex.build("other", FILMS.slice(0, 3), storage, shards=1)
    job = _actor_names._job()
    monkeypatch.setattr(process, "live_jobs", lambda: {job, "another"})
    key_value.put(b"index-user:run-1:another", b"")
    index.close_others("run-")
    assert "run-1" in _actor_names.indexes()
    monkeypatch.setattr(process, "live_jobs", lambda: {job})  # the other has ended
    index.close_others("run-")
    assert "run-1" not in _actor_names.indexes()
    assert not key_value.keys(b"index-user:run-1:")
    until(lambda: _is_refused(old))
    assert other.size == 3
    other.close()

    for victim in index._router._replicas[0]:
        pid = ray.get(victim.__ray_call__.remote(lambda _: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        for number in range(20):
            version = index.upsert(vector_table([1], axis(0), {"year": [number], "genre": ["War"]}))
            result = index.query(axis(0), 1, filters=f"year == {number}", timeout_s=10.0)
            assert result.ids.tolist() == [[1]], f"{number} was acknowledged, and is not seen"
        until(lambda version=version: versions(index) == {version})
    index.close()


def _is_refused(index: VectorIndex) -> bool:
    try:
        index.query(QUERIES, 3)
    except UnavailableError:
        return True
    return False  # its process is about to end
