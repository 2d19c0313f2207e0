import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raysys.errors import StorageError
from raysys.index import IndexSettings, Metric
from raysys.index._change_record import ChangeBatch, decode, encode
from raysys.index._hnsw_graph import HnswGraph
from raysys.index._persistence import IndexFiles, Manifest
from raysys.index._shard import Shard, ShardCapture
from raysys.storage import Storage
from tests.index._exact import (
    SCHEMA,
    Model,
    batch_of,
    exact_settings,
    queries_of,
    shard_of_batch,
)

QUERIES = queries_of(exact_settings())


@pytest.fixture
def files(storage: Storage) -> IndexFiles:
    files = IndexFiles(storage, "indexes/films")
    files.start_log()
    return files


def _folder(version: int) -> str:
    return f"{version:020d}"


def _manifest(settings: IndexSettings, *versions: int, schema: pa.Schema = SCHEMA) -> Manifest:
    return Manifest(_folder(min(versions)), max(versions), versions, 0, settings, schema)


def _snapshot(files: IndexFiles, shard: Shard, schema: pa.Schema = SCHEMA) -> Manifest:
    manifest = _manifest(shard.settings, shard.version, schema=schema)
    shard.capture(lambda state: files.write_shard(manifest.folder, 0, state))
    files.commit(manifest)
    return manifest


class Logged:
    """A shard whose changes are logged, and its model."""

    def __init__(self, files: IndexFiles, metric: Metric = "l2", rows: int = 40) -> None:
        self.files, settings = files, exact_settings(metric)
        batch = batch_of(settings, range(rows), seed=3)
        self.model = Model(settings)
        self.model.apply(batch)
        self.shard = shard_of_batch(settings, batch)

    def apply(self, ids: object = (), deleted: object = ()) -> None:
        version = self.shard.version + 1
        batch = batch_of(self.shard.settings, ids, deleted, seed=version)  # type: ignore[arg-type]
        self.files.write_record(version, encode(batch, str(version)))
        self.shard.apply(version, batch)
        self.model.apply(batch)


def _replay(files: IndexFiles, shard: Shard) -> None:
    for version, batch in files.changes(shard.version):
        shard.apply(version, batch)


# --- shards ---


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_a_shard_is_restored_as_it_was(files: IndexFiles, metric: Metric) -> None:
    logged = Logged(files, metric)
    logged.apply(range(38, 60), deleted=[0, 1])
    logged.shard.merge(10)
    logged.apply([50, 61], deleted=[41, 58, 59, 2])
    assert logged.shard.pending > 0
    restored = files.read_shard(_snapshot(files, logged.shard), 0)
    assert restored.size == logged.shard.size
    assert restored.counts()["tombstones"] == logged.shard.counts()["tombstones"]
    logged.model.check_shard(restored, QUERIES)
    # Rows that ended beside the graph are known as such: none is looked for once all are merged.
    while restored.merge():
        pass
    assert restored._dead_aside == 0
    logged.model.check_shard(restored, QUERIES)
    restored.apply(restored.version + 1, batch_of(restored.settings, [], range(60)))
    assert restored.size == 1


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_changes_while_a_shard_is_written_are_only_in_the_log(
    files: IndexFiles, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = Logged(files, metric)
    logged.apply([50, 51], deleted=[3])
    before = logged.model.copy()
    save = HnswGraph.save

    def slow_save(graph: HnswGraph, file: Path) -> None:
        logged.apply([7, 52], deleted=[4, 50])
        save(graph, file)
        logged.apply([8], deleted=[5, 52, 51])

    monkeypatch.setattr(HnswGraph, "save", slow_save)
    manifest = _snapshot(files, logged.shard)
    monkeypatch.undo()
    manifest = _manifest(logged.shard.settings, 2)
    files.commit(manifest)
    restored = files.read_shard(manifest, 0)
    assert restored.version == 2
    assert restored.counts()["tombstones"] == 1
    before.check_shard(restored, QUERIES)
    _replay(files, restored)
    assert restored.version == logged.shard.version == 4
    assert restored.size == logged.shard.size
    assert restored.counts()["tombstones"] == logged.shard.counts()["tombstones"]
    logged.model.check_shard(restored, QUERIES)
    logged.model.check_shard(logged.shard, QUERIES)


@pytest.mark.parametrize("damage", ["another format", "cut short", "wrong links"])
def test_a_graph_that_cannot_be_read_is_built_again(
    files: IndexFiles, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = Logged(files, "l2")
    logged.apply([50, 51], deleted=[3])
    save = HnswGraph.save

    def damaged_save(graph: HnswGraph, file: Path) -> None:
        save(graph, file)
        data = file.read_bytes()
        link = 7 * 8 + 4  # the second link after a head of seven numbers
        wrong = data[:link] + b"\xff\xff\x00\x00" + data[link + 4 :]
        file.write_bytes(
            {"another format": b"x" * 500, "cut short": data[:-9], "wrong links": wrong}[damage]
        )

    monkeypatch.setattr(HnswGraph, "save", damaged_save)
    manifest = _snapshot(files, logged.shard)
    restored = files.read_shard(manifest, 0)
    assert restored.counts() == logged.shard.counts() | {"tombstones": 0}
    logged.model.check_shard(restored, QUERIES)


def test_empty_shards_are_restored(files: IndexFiles) -> None:
    settings = exact_settings()
    empty = files.read_shard(_snapshot(files, Shard.empty(settings, SCHEMA, 4)), 0)
    assert (empty.version, empty.size) == (4, 0)
    Model(settings).check_shard(empty, QUERIES)
    logged = Logged(files)
    logged.apply(deleted=range(40))
    restored = files.read_shard(_snapshot(files, logged.shard), 0)
    logged.model.check_shard(restored, QUERIES)
    for shard in (empty, restored):
        batch = batch_of(settings, [1, 2])
        shard.apply(shard.version + 1, batch)
        model = Model(settings)
        model.apply(batch)
        model.check_shard(shard, QUERIES)


def test_a_shard_outlives_the_files_that_it_was_read_from(files: IndexFiles) -> None:
    logged = Logged(files)
    restored = files.read_shard(_snapshot(files, logged.shard), 0)
    shutil.rmtree(files.storage.root)
    logged.model.check_shard(restored, QUERIES)


def test_attributes_of_any_name_and_type_are_restored(
    files: IndexFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {
        "ended": pa.array([True, None, False]),
        "born": pa.array([["a", None], None, []]),
        "": pa.array([1, None, 3], pa.timestamp("us", "UTC")),
        "kind": pa.array(["x", None, "y"]).dictionary_encode(),
        "nested": pa.array([{"x": 1}, None, {"x": None}]),
    }
    attributes = pa.table(columns)
    ids, vectors = np.arange(3), np.eye(3, 4, dtype=np.float32)
    shard = Shard.build(exact_settings(), ids, vectors, attributes, 1)
    others = pa.table(columns | {"kind": pa.array(["z", "x", None]).dictionary_encode()})
    none = np.array([], np.int64)
    record = encode(ChangeBatch(ids + 3, vectors, others, none), "a")
    shard.apply(2, decode(record + encode(ChangeBatch(ids + 6, vectors, attributes, none), "b")))
    expected = [attributes, others, attributes]
    for restored in (shard, files.read_shard(_snapshot(files, shard, attributes.schema), 0)):
        ids_read, _, columns_read = restored.get(np.arange(9))
        assert ids_read.tolist() == list(range(9))
        assert columns_read.to_pylist() == [row for part in expected for row in part.to_pylist()]
        assert sorted(restored.matching("ended and kind == 'x'", 9).tolist()) == [0, 6]


def test_an_index_without_attributes_is_restored(files: IndexFiles) -> None:
    none = pa.schema([])
    vectors = np.eye(4, dtype=np.float32)
    shard = Shard.build(exact_settings(), np.arange(4), vectors, none.empty_table(), 1)
    batch = ChangeBatch(np.array([7]), vectors[:1], none.empty_table(), np.array([0]))
    shard.apply(2, decode(encode(batch, "a")))
    manifest = _snapshot(files, shard, none)
    restored = files.read_shard(manifest, 0)
    for copy in (shard, restored):
        assert copy.search(vectors[:1], 1)[1].tolist() == [[7]]
        assert sorted(copy.matching("id > 1", 9).tolist()) == [2, 3, 7]
        copy.compact()
        assert copy.size == 4
    rows = files.read_rows(manifest, 0, 2)
    assert rows.schema.names == ["id", "vector"]
    assert sorted(rows["id"].to_pylist()) == [1, 2, 3, 7]


def test_rows_are_written_in_batches(files: IndexFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table = pa.ipc.RecordBatchFileWriter.write_table
    monkeypatch.setattr(
        pa.ipc.RecordBatchFileWriter,
        "write_table",
        lambda writer, table, max_chunksize: write_table(writer, table, 7),
    )
    logged = Logged(files)
    logged.apply(range(30, 70), deleted=[0, 35])
    restored = files.read_shard(_snapshot(files, logged.shard), 0)
    logged.model.check_shard(restored, QUERIES)


# --- rows at a version ---


def test_rows_are_read_as_of_any_version_since_the_snapshot(files: IndexFiles) -> None:
    logged = Logged(files)
    logged.apply([40], deleted=[1])
    manifest = _snapshot(files, logged.shard)
    models = {2: logged.model.copy()}
    for version, (ids, deleted) in enumerate([([41, 2], [3]), ([], [41]), ([1, 41], [])], 3):
        logged.apply(ids, deleted)
        models[version] = logged.model.copy()
    for version, model in models.items():
        rows = files.read_rows(manifest, 0, version)
        assert rows.schema.names == ["id", "vector", "year", "name"]
        assert rows.schema.field("vector").type == pa.list_(pa.float32(), 4)
        by_id = {row.pop("id"): row for row in rows.to_pylist()}
        assert by_id == {
            number: row | {"vector": row["vector"].tolist()} for number, row in model.rows.items()
        }


def test_each_shard_resumes_at_its_own_version(files: IndexFiles) -> None:
    settings = exact_settings().model_copy(update={"shards": 2})
    first, model = batch_of(settings, range(20)), Model(settings)
    model.apply(first)
    shards = []
    for number in range(2):
        part = first.of_shard(number, 2)
        shards.append(Shard.build(settings, part.ids, part.vectors, part.attributes, 1))
    folder = _folder(2)
    for version in (2, 3, 4):
        batch = batch_of(settings, range(version, 30, 3), range(version + 1, 30, 3), seed=version)
        files.write_record(version, encode(batch, ""))
        model.apply(batch)
        for number, shard in enumerate(shards):
            shard.apply(version, batch.of_shard(number, 2))
        if version < 4:  # the second shard writes its part one version later
            number = version - 2
            files.write_shard(folder, number, _captured(shards[number]))
    manifest = Manifest(folder, 3, (2, 3), 0, settings, SCHEMA)
    files.commit(manifest)
    (manifest,) = files.manifests()
    assert manifest.shard_versions == (2, 3)
    rows = pa.concat_tables([files.read_rows(manifest, number, 4) for number in range(2)])
    assert sorted(rows["id"].to_pylist()) == sorted(model.rows)
    for number, row in zip(rows["id"].to_pylist(), rows.to_pylist(), strict=True):
        assert row["vector"] == model.rows[number]["vector"].tolist()


def test_a_gap_in_the_log_is_an_error(files: IndexFiles) -> None:
    logged = Logged(files)
    manifest = _snapshot(files, logged.shard)
    for number in range(50, 54):
        logged.apply([number])
    files.storage.remove(f"{files.path}/log/{_folder(3)}")
    assert files.read_rows(manifest, 0, 2).num_rows == 41
    for upto in (3, 4, 5, 99):
        with pytest.raises(StorageError, match="lacks version 3"):
            files.read_rows(manifest, 0, upto)


def test_a_log_that_ends_before_a_later_unfinished_snapshot_is_complete(files: IndexFiles) -> None:
    logged = Logged(files)
    manifest = _snapshot(files, logged.shard)
    logged.apply([50])
    logged.shard.capture(lambda state: files.write_shard(_folder(9), 0, state))
    assert files.last_version() == 9
    assert files.read_rows(manifest, 0, 9).num_rows == 41


# --- the log ---


def test_the_log_is_read_in_order_and_between_versions(files: IndexFiles) -> None:
    assert files.log_versions() == []
    assert files.record(1) is None
    for version in (11, 9, 10, 100):
        files.write_record(version, encode(batch_of(exact_settings(), [version]), ""))
    assert files.log_versions() == [9, 10, 11, 100]
    assert [version for version, _ in files.changes(9)] == [10, 11, 100]
    assert [batch.ids.tolist() for _, batch in files.changes(9, 11)] == [[10], [11]]
    assert list(files.changes(100)) == []


def test_a_record_that_vanishes_while_the_log_is_read_is_an_error(files: IndexFiles) -> None:
    for version in (1, 2):
        files.write_record(version, encode(batch_of(exact_settings(), [version]), ""))
    changes = files.changes(0)
    next(changes)
    files.storage.remove(f"{files.path}/log/{_folder(2)}")
    with pytest.raises(StorageError, match="version 2"):
        next(changes)


# --- snapshots ---


def test_a_manifest_survives_encoding(files: IndexFiles) -> None:
    schema = pa.schema([("year", pa.int16()), ("tags", pa.list_(pa.string()))])
    settings = IndexSettings(dim=7, metric="ip", shards=2, ef_search=99)
    manifest = Manifest(_folder(3), 5, (3, 5), 77, settings, schema)
    files.commit(manifest)
    assert files.manifests() == [manifest]
    changed = Manifest(
        _folder(3), 5, (3, 5), 77, settings.model_copy(update={"ef_search": 5}), schema
    )
    files.commit(changed)
    assert files.manifests() == [changed]


def test_a_snapshot_without_a_manifest_is_ignored(files: IndexFiles) -> None:
    assert files.manifest() is None
    assert files.last_version() == 0
    logged = Logged(files)
    logged.shard.capture(lambda state: files.write_shard(_folder(1), 0, state))
    assert files.manifests() == []
    # Its version is not used restored.
    assert files.last_version() == 1
    complete = _snapshot(files, logged.shard)
    logged.apply([50])
    logged.shard.capture(lambda state: files.write_shard(_folder(2), 0, state))
    assert files.manifest() == complete
    assert files.manifest(1) == complete
    assert files.manifest(2) is None
    assert files.last_version() == 2


def test_a_failed_write_of_a_shard_leaves_nothing(
    files: IndexFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = Logged(files)

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(HnswGraph, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        _snapshot(files, logged.shard)
    monkeypatch.undo()
    assert files.manifests() == []
    logged.apply([50])
    logged.shard.merge()
    restored = files.read_shard(_snapshot(files, logged.shard), 0)
    logged.model.check_shard(restored, QUERIES)


def _captured(shard: Shard) -> ShardCapture:
    captures: list[ShardCapture] = []
    shard.capture(captures.append)
    return captures[0]


@pytest.mark.parametrize("keep", [1, 2, 9])
def test_old_snapshots_and_their_log_are_removed(files: IndexFiles, keep: int) -> None:
    state = _captured(Logged(files, rows=3).shard)
    settings = exact_settings()
    # Three complete snapshots, an abandoned one between them, and one being written.
    for folder in (2, 4, 5, 6, 9):
        files.write_shard(_folder(folder), 0, state)
    for version in range(2, 11):
        files.write_record(version, b"")
    for versions in ((2, 3), (4, 4), (6, 8)):
        files.commit(_manifest(settings, *versions))
    files.prune(keep)
    versions = [manifest.version for manifest in files.manifests()]
    folders = [int(name) for name in files.storage.names(f"{files.path}/snapshots")]
    expected = {
        1: ([8], [6, 9], [7, 8, 9, 10]),
        2: ([4, 8], [4, 6, 9], [5, 6, 7, 8, 9, 10]),
        9: ([3, 4, 8], [2, 4, 6, 9], [3, 4, 5, 6, 7, 8, 9, 10]),
    }[keep]
    assert (versions, folders, files.log_versions()) == expected
    files.prune(keep)
    assert files.log_versions() == expected[2]


def test_without_a_complete_snapshot_nothing_is_removed(files: IndexFiles) -> None:
    files.write_record(1, b"")
    files.write_shard(_folder(1), 0, _captured(Logged(files, rows=3).shard))
    files.prune(1)
    assert files.log_versions() == [1]
    assert files.storage.names(f"{files.path}/snapshots") == [_folder(1)]


def test_a_missing_shard_of_a_snapshot_is_an_error(files: IndexFiles) -> None:
    manifest = _snapshot(files, Logged(files).shard)
    with pytest.raises(StorageError, match="no complete artefact"):
        files.read_shard(manifest, 1)
    assert IndexFiles(files.storage, "elsewhere").manifest() is None


# --- damage ---


class Damaged:
    """An index with two snapshots, changes since each, and a model of the present."""

    def __init__(self, files: IndexFiles) -> None:
        self.files, logged = files, Logged(files)
        self.first = _snapshot(files, logged.shard)
        logged.apply(range(35, 45), deleted=[0])
        logged.apply([50], deleted=[1])
        self.second = _snapshot(files, logged.shard)
        logged.apply([51], deleted=[2])
        logged.apply([52])
        self.model = logged.model
        self.folder = Path(files.storage.root) / files.path

    def read(self) -> Shard:
        """The present, from the last snapshot and the log."""
        manifest = self.files.manifest()
        assert manifest is not None
        shard = self.files.read_shard(manifest, 0)
        _replay(self.files, shard)
        return shard

    def check(self) -> None:
        shard = self.read()
        assert (shard.version, shard.size) == (5, len(self.model.rows))
        self.model.check_shard(shard, QUERIES)


@pytest.mark.parametrize("name", ["0/rows.arrow", "0/graph.hnsw", "0/state.json", "manifest.json"])
def test_a_flipped_bit_of_a_snapshot_is_refused(files: IndexFiles, name: str) -> None:
    damaged = Damaged(files)
    damaged.check()
    folder = damaged.folder / "snapshots" / damaged.second.folder
    file = folder / name
    content = file.read_bytes()
    rng = np.random.default_rng(len(content))
    places = {0, len(content) - 1, *rng.integers(len(content), size=60).tolist()}
    for place in sorted(places):
        wrong = bytearray(content)
        wrong[place] ^= 1 << rng.integers(8)
        file.write_bytes(wrong)
        with pytest.raises(StorageError) as caught:
            damaged.read()
        assert str(caught.value) == (
            f"{file} is damaged ({caught.value.__cause__}): move {folder} away, and "
            "VectorIndex.restore starts from the snapshot before it and the log since"
        )
    for wrong_length in (content[:-2], content[: len(content) // 2], b"", content + b"\0"):
        file.write_bytes(wrong_length)
        with pytest.raises(StorageError, match=f"{name} is damaged"):
            damaged.read()
    folder.rename(damaged.folder / "aside")
    damaged.check()  # nothing is lost


def test_a_missing_file_of_a_snapshot_is_refused(files: IndexFiles) -> None:
    damaged = Damaged(files)
    for name in ("rows.arrow", "graph.hnsw", "state.json"):
        file = damaged.folder / "snapshots" / damaged.second.folder / "0" / name
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(StorageError, match=f"{name} is damaged"):
            damaged.read()
        file.write_bytes(content)
    damaged.check()


def test_without_an_earlier_snapshot_a_damaged_index_is_built_again(files: IndexFiles) -> None:
    manifest = _snapshot(files, Logged(files).shard)
    file = Path(files.storage.root) / files.path / "snapshots" / manifest.folder / "0/rows.arrow"
    file.write_bytes(b"x" + file.read_bytes()[1:])
    with pytest.raises(StorageError, match="no snapshot is before it, build the index again"):
        files.read_shard(manifest, 0)
    with pytest.raises(StorageError, match=r"rows\.arrow is damaged"):
        files.read_rows(manifest, 0, 1)


@pytest.mark.parametrize("version", [4, 5])
def test_a_flipped_bit_of_the_log_is_refused(files: IndexFiles, version: int) -> None:
    damaged = Damaged(files)
    file = damaged.folder / "log" / _folder(version)
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in sorted({*range(20), *rng.integers(len(content), size=60).tolist()}):
        wrong = bytearray(content)
        wrong[place] ^= 1 << rng.integers(8)
        file.write_bytes(wrong)
        files.drop_cut_off_record()
        with pytest.raises(StorageError) as caught:
            damaged.read()
        assert str(caught.value) == (
            f"{file} is damaged (its checksum differs): go back by VectorIndex.restore(..., "
            "version=3)"
        )
    assert files.read_rows(damaged.second, 0, 3).num_rows == len(damaged.model.rows) - 1


def test_a_last_record_without_its_end_is_dropped(files: IndexFiles) -> None:
    damaged = Damaged(files)
    file = damaged.folder / "log" / _folder(5)
    content = file.read_bytes()
    for length in (0, 5, 16, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        files.drop_cut_off_record()
        assert files.log_versions() == [2, 3, 4]
        assert damaged.read().version == 4
    # Not if others follow it: its change was acknowledged.
    file.write_bytes(content)
    earlier = damaged.folder / "log" / _folder(4)
    earlier.write_bytes(earlier.read_bytes()[:-1])
    files.drop_cut_off_record()
    assert files.log_versions() == [2, 3, 4, 5]
    with pytest.raises(StorageError, match="its end is missing"):
        damaged.read()


def test_a_lost_log_is_refused_until_a_snapshot_makes_up_for_it(files: IndexFiles) -> None:
    damaged = Damaged(files)
    log = damaged.folder / "log"
    log.rename(damaged.folder / "aside")
    lost = f"{log}, is missing, and with it every change after version 3: bring the folder back"
    for use in (damaged.read, files.log_versions, lambda: files.write_record(6, b"")):
        with pytest.raises(StorageError) as caught:
            use()
        assert lost in str(caught.value)
    assert not log.exists()
    assert files.last_version() == 3
    (damaged.folder / "aside").rename(log)
    damaged.check()
    shutil.rmtree(log)
    files.start_log()
    files.start_log()
    assert damaged.read().version == 3
    files.write_record(4, encode(batch_of(exact_settings(), [70]), ""))
    assert damaged.read().version == 4
