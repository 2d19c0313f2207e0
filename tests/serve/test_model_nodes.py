"""Stored models and an index behind an endpoint."""

import concurrent.futures
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from raysys import cluster
from raysys.data import Table
from raysys.errors import RaysysError, StorageError
from raysys.index import VectorIndex
from raysys.models import ModelStore, StoredModel
from raysys.serve import Endpoint, LazyModel, undeploy
from raysys.storage import Storage
from raysys.tracking import connect, open_run, tracking_uri
from tests.serve.conftest import Deployer
from tests.serve.serving import Linear, Reply, eventually, post, stored_graph

MODELS = 12
DIM = 4
VECTORS = np.random.default_rng(0).normal(size=(60, DIM)).astype(np.float32)


def write_linear(weight: float, folder: Path) -> None:
    np.save(folder / "weights.npy", np.full(DIM, weight, np.float32))


def save(storage: Storage, name: str, weight: float, path: str) -> StoredModel:
    store = ModelStore(storage)
    run = open_run(storage, "serving", name, settings={"weight": weight})
    saved = store.register(
        name, functools.partial(write_linear, weight), manifest={"weight": weight}, run=run,
        path=path,
    )  # fmt: skip
    run.end("FINISHED", {})
    store.promote(saved)
    return saved


def vectors_table() -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()), DIM)
    return pa.table({"id": np.arange(len(VECTORS)) * 7, "vector": column})


@dataclass(frozen=True)
class Stored:
    endpoint: Endpoint
    storage: Storage
    base: StoredModel
    index: VectorIndex


@pytest.fixture(scope="module")
def stored(deployer: Deployer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    storage = Storage(tmp_path_factory.mktemp("stored"))
    base = save(storage, "base", 1.0, "models/base")
    for number in range(MODELS):
        save(storage, f"own-m{number}", 10.0 * number, f"models/m{number}")
    index = VectorIndex.build("neighbours", Table.load(vectors_table), storage, metric="ip")
    endpoint = deployer(
        "stored",
        stored_graph(LazyModel(Linear, storage, "base"), storage, "neighbours"),
        example={"model": ["m0"], "x": np.zeros((1, DIM), np.float32)},
    )
    yield Stored(endpoint, storage, base, index)
    undeploy("stored")
    index.close()


def ask(stored: Stored, model: str, x: list[float]) -> Reply:
    return post(stored.endpoint.url, {"model": model, "x": x})


def arrow_body(models: list[str], x: np.ndarray) -> bytes:
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.astype(np.float32).ravel()), DIM)
    table, sink = pa.table({"model": models, "x": column}), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def ask_rows(stored: Stored, models: list[str], x: np.ndarray) -> Reply:
    kind = {"content-type": "application/vnd.apache.arrow.stream"}
    return post(stored.endpoint.url, arrow_body(models, x), kind)


def test_status_says_which_model_serves_and_how_many_requests_failed(stored: Stored) -> None:
    """The first test of this application: its counts start at 0."""
    for model in ("m0", "nobody", "m1", "", "m2"):
        ask(stored, model, [1, 1, 1, 1])
    dashboard = cluster.Dashboard(f"http://{ray._private.worker.get_dashboard_url()}")

    def line() -> str:
        return next(
            line for line in cluster.status_lines(dashboard) if line.startswith("  stored-v")
        )

    failed = "2 of 5 requests failed (2 4xx)"
    eventually(lambda: failed in line())
    assert line().startswith(f"  stored-v{stored.endpoint.version}: RUNNING since 20")
    assert f"; models base v{stored.base.version}; " in line()


def test_a_stored_model_answers(stored: Stored) -> None:
    assert ask(stored, "m0", [1, 2, 3, 4]).json["base"] == 10.0


def test_each_row_of_a_batch_is_answered_by_its_own_model(stored: Stored) -> None:
    numbers = [n % MODELS for n in range(5, 45)]
    x = np.ones((len(numbers), DIM)) * np.arange(len(numbers))[:, None]
    reply = ask_rows(stored, [f"m{n}" for n in numbers], x)
    assert reply.status == 200, reply
    answers = pa.ipc.open_stream(reply.body).read_all()
    assert answers["own"].to_pylist() == [40.0 * n * row for row, n in enumerate(numbers)]
    assert set(answers["held"].to_pylist()) == {3}  # of the twelve that were asked for


def test_requests_at_once_are_answered_by_their_own_models(stored: Stored) -> None:
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        numbers = [n % MODELS for n in range(36)]
        replies = list(pool.map(lambda n: ask(stored, f"m{n}", [1, 1, 1, 1]), numbers))
    assert [reply.json["own"] for reply in replies] == [40.0 * n for n in numbers]
    assert {reply.json["base"] for reply in replies} == {4.0}
    assert max(reply.json["held"] for reply in replies) <= 3


def test_an_unknown_model_is_an_error_of_its_request_alone(stored: Stored) -> None:
    def one(n: int) -> Reply:
        return ask(stored, "nobody" if n % 4 == 2 else f"m{n % MODELS}", [1, 1, 1, 1])

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(one, range(24)))
    assert [reply.status for reply in replies] == [422 if n % 4 == 2 else 200 for n in range(24)]
    assert replies[2].json["error"] == "model 'nobody' is not in the store"


@pytest.mark.parametrize(
    "name", ["../base", "/etc/passwd", "a/b", "", "m0\0", "m0\n", "a" * 129, "m0' OR 1=1"]
)
def test_a_name_that_is_none_is_refused(stored: Stored, name: str) -> None:
    reply = ask(stored, name, [1, 1, 1, 1])
    assert reply.status == 422, reply
    assert "use letters" in reply.json["error"]


def test_a_model_of_another_family_is_not_reached(stored: Stored) -> None:
    for name in ("base", "own-m1", "..", "."):
        assert ask(stored, name, [1, 1, 1, 1]).status == 422


def test_neighbours_are_those_of_the_index(stored: Stored) -> None:
    queries = VECTORS[:20]
    result = stored.index.query(queries, 3)
    ids, scores = result.ids, result.distances
    reply = ask_rows(stored, ["m1"] * len(queries), queries)
    answers = pa.ipc.open_stream(reply.body).read_all()
    assert answers["ids"].to_pylist() == ids.tolist()
    np.testing.assert_allclose(np.array(answers["scores"].to_pylist()), scores, rtol=1e-6)
    lone = ask(stored, "m1", queries[3].tolist()).json
    assert lone["ids"] == ids[3].tolist()
    np.testing.assert_allclose(lone["scores"], scores[3], rtol=1e-6)


def test_a_model_that_was_changed_is_not_served(stored: Stored, deployer: Deployer) -> None:
    changed = save(stored.storage, "changed", 5.0, "models/changed")
    write_linear(6.0, Path(stored.storage.uri("models/changed")))
    graph = stored_graph(LazyModel(Linear, stored.storage, changed), stored.storage, "neighbours")
    with pytest.raises(RaysysError, match=r"cannot start(.|\n)*were changed"):
        deployer("stored", graph)
    assert ask(stored, "m0", [1, 2, 3, 4]).json["base"] == 10.0


# --- the store's digest ---


@pytest.fixture
def linear(ray_cluster: None, storage: Storage) -> StoredModel:
    return save(storage, "linear", 2.0, "models/linear")


def test_a_model_is_fetched_as_it_was_stored(linear: StoredModel, storage: Storage) -> None:
    found = ModelStore(storage).get("linear")
    assert found == linear
    assert len(found.sha256) == 64
    np.testing.assert_array_equal(np.load(found.fetch(storage) / "weights.npy"), np.full(DIM, 2.0))
    assert found.manifest(storage) == {"weight": 2.0}


def test_the_same_files_have_the_same_digest(linear: StoredModel, storage: Storage) -> None:
    again = save(storage, "linear", 2.0, "models/again")
    assert (again.version, again.sha256) == (linear.version + 1, linear.sha256)
    assert save(storage, "linear", 3.0, "models/third").sha256 != linear.sha256


@pytest.mark.parametrize("how", ["bytes", "added", "renamed", "removed", "manifest", "gone"])
def test_changed_files_are_refused(linear: StoredModel, storage: Storage, how: str) -> None:
    folder = Path(storage.uri(linear.path))
    weights = folder / "weights.npy"
    if how == "bytes":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    elif how == "added":
        (folder / "sitecustomize.py").write_text("print('ours')")
    elif how == "renamed":
        weights.rename(folder / "weights2.npy")
    elif how == "removed":
        weights.unlink()
    elif how == "manifest":
        (folder / "model.json").write_text('{"weight": 3.0}')
    else:
        folder.rename(folder.with_name("elsewhere"))
    for reach in (linear.fetch, linear.manifest):
        with pytest.raises(StorageError, match="linear"):
            reach(storage)


def test_a_model_without_a_digest_is_refused(linear: StoredModel, storage: Storage) -> None:
    client = connect(tracking_uri(storage))
    client.delete_model_version_tag("linear", str(linear.version), "raysys.sha256")
    with pytest.raises(StorageError, match="were changed"):
        ModelStore(storage).get("linear").fetch(storage)


def test_a_name_or_alias_that_is_not_there(linear: StoredModel, storage: Storage) -> None:
    with pytest.raises(StorageError, match="no model 'nobody'"):
        LazyModel(Linear, storage, "nobody")
    with pytest.raises(StorageError, match="alias 'challenger'"):
        LazyModel(Linear, storage, "linear", alias="challenger")


def test_what_is_loaded_is_what_the_alias_pointed_at(linear: StoredModel, storage: Storage) -> None:
    lazy = LazyModel(Linear, storage, "linear")
    save(storage, "linear", 7.0, "models/newer")
    ones = np.ones((1, DIM), np.float32)
    assert lazy(ones) == [8.0]
    assert LazyModel(Linear, storage, "linear")(ones) == [28.0]
