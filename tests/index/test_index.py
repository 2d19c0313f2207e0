import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import ray

from raysys.data import Table
from raysys.errors import DataError
from raysys.index import VectorIndex
from raysys.storage import Storage

pytestmark = pytest.mark.usefixtures("ray_cluster")

SIZE, DIM, CLUSTERS = 3000, 16, 30


def _clustered(seed: int, count: int) -> np.ndarray:
    """Unit vectors around the same centres whatever the seed: float32 `(count, DIM)`."""
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, DIM))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, CLUSTERS, count)] + 0.3 * rng.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = _clustered(1, SIZE), _clustered(2, 100)
IDS = np.arange(SIZE) * 7 + 3  # Not row numbers, and of both shards.


def _arrow(ids: np.ndarray, vectors: np.ndarray) -> pa.Table:
    flat = pa.array(vectors.ravel())
    return pa.table(
        {"id": ids, "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}
    )


def _build(
    name: str, storage: Storage, vectors: np.ndarray = VECTORS[:20], shards: int = 1
) -> VectorIndex:
    table = Table.load(_arrow, IDS[: len(vectors)], vectors)
    return VectorIndex.build(name, table, storage, f"indexes/{name}", shards=shards)


def _exact(k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = QUERIES @ VECTORS.T
    order = np.argsort(-scores, axis=1)[:, :k]
    return IDS[order], np.take_along_axis(scores, order, axis=1)


@pytest.fixture(scope="module")
def index(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorIndex]:
    index = _build("films", Storage(tmp_path_factory.mktemp("index")), VECTORS, shards=2)
    yield index
    index.close()


@pytest.mark.parametrize("k", [1, 10, 100])
def test_recall_against_an_exact_search(index: VectorIndex, k: int) -> None:
    found, exact = index.query(QUERIES, k)[0], _exact(k)[0]
    hits = [len(set(ours) & set(best)) for ours, best in zip(found, exact, strict=True)]
    assert sum(hits) / exact.size >= 0.95


def test_the_answers_of_the_shards_are_merged_best_first(index: VectorIndex) -> None:
    ids, scores = index.query(QUERIES, 50)
    assert (ids.shape, ids.dtype, scores.dtype) == ((100, 50), np.int64, np.float32)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert set(ids.ravel() % 2) == {0, 1}
    rows = (ids - 3) // 7
    true = np.einsum("qd,qkd->qk", QUERIES, VECTORS[rows])
    np.testing.assert_allclose(scores, true, atol=1e-5)


def test_more_neighbours_than_vectors_gives_all_of_them_in_order(index: VectorIndex) -> None:
    assert index.size == SIZE
    ids, scores = index.query(QUERIES[:5], SIZE + 10)
    assert [sorted(row) for row in ids.tolist()] == [IDS.tolist()] * 5
    np.testing.assert_allclose(scores, _exact(SIZE)[1][:5], atol=1e-5)


def test_vectors_that_no_link_of_the_graph_leads_to_are_found_too(storage: Storage) -> None:
    lengths = np.exp(np.random.default_rng(0).normal(size=(500, 1))).astype(np.float32)
    index = _build("lengths", storage, VECTORS[:500] * lengths)
    ids, scores = index.query(QUERIES, 500)
    assert [sorted(row) for row in ids.tolist()] == [IDS[:500].tolist()] * 100
    assert (np.diff(scores, axis=1) <= 0).all()
    index.close()


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"id": ["a"], "vector": pa.array([[1.0]], pa.list_(pa.float32(), 1))}),
        pa.table({"id": [1], "vector": pa.array([[1.0]], pa.list_(pa.float64(), 1))}),
        pa.table({"id": [1], "vector": pa.array([[1.0]], pa.list_(pa.float32()))}),
        pa.table({"id": [1]}),
    ],
    ids=["text id", "double vector", "vector of any length", "no vector"],
)
def test_columns_of_other_types_are_refused_by_name(table: pa.Table, storage: Storage) -> None:
    with pytest.raises(DataError, match=r"columns `id` .* and `vector` .*; given: {'id': "):
        VectorIndex.build("wrong", Table.load(table.slice), storage, "wrong")


def test_a_table_without_rows_is_refused(storage: Storage) -> None:
    with pytest.raises(DataError, match="at least one vector"):
        _build("none", storage, VECTORS[:0])


def test_a_killed_actor_comes_back_from_its_snapshot(index: VectorIndex) -> None:
    before = index.query(QUERIES, 10)
    pids = [ray.get(shard.__ray_call__.remote(lambda _: os.getpid())) for shard in index.shards]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    after = index.query(QUERIES, 10)
    np.testing.assert_array_equal(after, before)
    now = [ray.get(shard.__ray_call__.remote(lambda _: os.getpid())) for shard in index.shards]
    assert not set(now) & set(pids)


def test_connect_finds_an_index_by_name(index: VectorIndex) -> None:
    found = VectorIndex.connect("films", 2)
    assert found.size == index.size
    np.testing.assert_array_equal(found.query(QUERIES, 10), index.query(QUERIES, 10))


def test_a_task_may_be_given_the_index(index: VectorIndex) -> None:
    ask = ray.remote(lambda index: index.query(QUERIES, 10))
    np.testing.assert_array_equal(ray.get(ask.remote(index)), index.query(QUERIES, 10))


def test_a_build_replaces_the_index_of_its_name(storage: Storage) -> None:
    _build("again", storage, VECTORS[:20], shards=2)
    index = _build("again", storage, VECTORS[:1], shards=2)  # One shard is left empty.
    assert VectorIndex.connect("again", 2).size == index.size == 1
    assert index.query(VECTORS[:1], 3)[0].tolist() == [[3]]
    index.close()


def test_retire_others_ends_only_the_others_of_the_prefix(storage: Storage) -> None:
    old, new, other = (_build(name, storage) for name in ("run-1", "run-2", "else-1"))
    new.retire_others("run-")
    assert _is_gone(old)
    assert new.query(VECTORS[:1], 3)[0].shape == other.query(VECTORS[:1], 3)[0].shape == (1, 3)
    new.close()
    other.close()
    assert _is_gone(new)


def _is_gone(index: VectorIndex) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            VectorIndex.connect(index.name, 1)
        except (ValueError, ray.exceptions.RayActorError):
            return True
        time.sleep(0.1)
    return False
