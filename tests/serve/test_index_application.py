"""An index behind HTTP: its actions, their forms, and a search that makes no hop."""

import concurrent.futures
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raysys.errors import GraphError
from raysys.index import VectorIndex, vector_table
from raysys.serve import (
    Array,
    Endpoint,
    Graph,
    IndexSearch,
    LazyObject,
    bind_inputs,
    index_graphs,
    undeploy,
)
from raysys.storage import Storage
from tests.serve.conftest import Deployer
from tests.serve.serving import eventually, get, post

DIM, SIZE = 4, 300
VECTORS = np.random.default_rng(0).normal(size=(SIZE, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def index(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorIndex]:
    attributes = {
        "year": 1900 + np.arange(SIZE) % 100,
        "title": [f"film {number}" for number in range(SIZE)],
        "tags": [["war", "drama"] if number % 2 else ["war"] for number in range(SIZE)],
    }
    storage = Storage(tmp_path_factory.mktemp("index"))
    table = vector_table(np.arange(SIZE), VECTORS, attributes)
    index = VectorIndex.build("shop", table, storage, shards=1)
    yield index
    index.close()


@pytest.fixture(scope="module")
def shop(index: VectorIndex, deployer: Deployer) -> Iterator[Endpoint]:
    yield deployer("shop", index_graphs(index))
    undeploy("shop")


def test_search_answers_as_the_index_does(shop: Endpoint, index: VectorIndex) -> None:
    request = {"vector": VECTORS[7].tolist(), "k": 3, "with_attributes": True}
    answer = shop.predict(request, action="search")
    found = index.query(VECTORS[7:8], 3)
    assert answer["ids"] == found.ids[0].tolist()
    np.testing.assert_allclose(answer["distances"], found.distances[0], atol=1e-6)
    first = answer["attributes"][0]
    assert first == {"year": 1907, "title": "film 7", "tags": ["war", "drama"]}


def test_requests_of_one_batch_have_their_own_k_and_filter(shop: Endpoint) -> None:
    def ask(number: int) -> dict[str, Any]:
        request = {"vector": VECTORS[0].tolist(), "k": number, "filter": f"year == {1900 + number}"}
        return shop.predict(request, action="search")

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(1, 41)))
    for number, answer in enumerate(answers, start=1):
        assert {one % 100 for one in answer["ids"]} == {number}
        assert len(answer["ids"]) == min(number, SIZE // 100)


def test_filter_lists_ids(shop: Endpoint) -> None:
    answer = shop.predict({"filter": "year == 1901 and 'drama' in tags"}, action="filter")
    assert answer["ids"] == [1, 101, 201]


def test_changes_are_seen_by_the_next_search(shop: Endpoint) -> None:
    row = {"id": 900, "vector": [9.0, 0, 0, 0], "year": 2030, "title": "new", "tags": []}
    versions = [shop.predict(row, action="upsert")["version"]]
    search = {"vector": [9.0, 0, 0, 0], "filter": "year > 2000", "with_attributes": True}
    answer = shop.predict(search, action="search")
    assert (answer["ids"], answer["attributes"][0]["title"]) == ([900], "new")
    versions.append(shop.predict({"id": 900}, action="delete")["version"])
    assert shop.predict(search, action="search")["ids"] == []
    assert versions[0] < versions[1]


def test_upserts_that_wait_together_all_arrive(shop: Endpoint, index: VectorIndex) -> None:
    def put(number: int) -> None:
        row = {"id": 2000 + number % 20, "vector": [1.0, 1, 1, number], "year": 2040}
        shop.predict({**row, "title": "t", "tags": ["x"]}, action="upsert")

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        list(threads.map(put, range(60)))
    assert index.matching("year == 2040").tolist() == list(range(2000, 2020))
    index.delete(np.arange(2000, 2020))


@pytest.mark.parametrize(
    ("action", "request_body", "named"),
    [
        ("search", {"vector": [1.0, 2.0]}, "vector"),
        ("search", {"vector": [1.0] * DIM, "k": 0}, "k"),
        ("search", {"vector": [1.0] * DIM, "filter": "yeer > 1"}, "yeer"),
        ("search", {"vector": [1e39] * DIM}, "finite"),
        ("filter", {"filter": "year >"}, "filter"),
        ("filter", {"filter": "year > 1 or " * 9_000}, "at most 32768 characters"),
        ("search", {"vector": [1.0] * DIM, "filter": "year > 1 or " * 900}, "1,800 operators"),
        ("upsert", {"id": 1, "vector": [1.0] * DIM}, "year"),
        ("upsert", {"id": 1, "vector": [0.0] * DIM, "year": 1, "title": "", "tags": []}, "zeros"),
        ("delete", {}, "id"),
    ],
)
def test_bad_requests_are_422_and_name_what_is_wrong(
    shop: Endpoint, index: VectorIndex, action: str, request_body: dict[str, Any], named: str
) -> None:
    before = index.status()
    reply = post(f"{shop.url}/{action}", request_body)
    assert reply.status == 422
    assert named in reply.json["error"]
    assert index.status() == before


def test_the_forms_name_the_columns_and_the_language(shop: Endpoint) -> None:
    document = get(f"{shop.url}/openapi.json").json
    assert {f"/shop/{one}" for one in ("search", "filter", "upsert", "delete")} < set(
        document["paths"]
    )
    text = str(document["components"])
    assert all(word in text for word in ("'year'", "'title'", "'tags'", "comparisons of columns"))


def test_read_only_leaves_the_changes_out(index: VectorIndex) -> None:
    assert set(index_graphs(index, read_only=True)) == {"search", "filter"}
    assert not any(graph.writes for graph in index_graphs(index, read_only=True).values())


def test_a_node_over_one_shard_follows_the_index(index: VectorIndex) -> None:
    graph = Graph(
        inputs={"x": Array("float32", (DIM,))},
        nodes={"near": bind_inputs(LazyObject(IndexSearch, "shop", 2), vectors="x"), "ids": _ids},
        output="ids",
    )
    batch = {"x": VECTORS[5:6]}
    assert graph(batch)[0, 0] == 5
    index.delete([5])
    eventually(lambda: graph(batch)[0, 0] != 5)
    row = index.get([6]).set_column(0, "id", pa.array([5]))
    index.upsert(row)
    eventually(lambda: 5 in graph({"x": VECTORS[6:7]})[0])


def _ids(near: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return near[0]


def test_an_attribute_that_json_has_no_form_for_is_named(storage: Storage) -> None:
    class Described:
        name = "x"
        settings = type("S", (), {"dim": 2})
        schema = pa.schema({"blob": pa.binary()})

    with pytest.raises(GraphError, match="'blob' is binary"):
        index_graphs(Described())  # type: ignore[arg-type]


def _films(ids: np.ndarray, year: int) -> pa.Table:
    vectors = np.random.default_rng(year).normal(size=(len(ids), DIM))
    columns = {"year": [year] * len(ids), "title": ["bulk"] * len(ids), "tags": [["x"]] * len(ids)}
    return vector_table(ids, vectors, columns)


def _post_stream(url: str, table: pa.Table) -> Any:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    kind = {"content-type": "application/vnd.apache.arrow.stream"}
    return post(url, sink.getvalue().to_pybytes(), headers=kind)


def test_a_bulk_write_is_one_version_or_refused(shop: Endpoint, index: VectorIndex) -> None:
    ids = np.arange(50_000, 51_000)
    (before,) = (counts["version"] for counts in index.status().values() if counts)
    reply = _post_stream(f"{shop.url}/upsert", _films(ids, 2050))
    assert reply.status == 200
    answer = pa.ipc.open_stream(reply.body).read_all()
    assert answer.to_pylist() == [{"answer": {"version": before + 1}}] * len(ids)
    assert index.matching("year == 2050", limit=9999).tolist() == ids.tolist()
    # One row that does not fit, or more rows than can be done at once: none is changed.
    wrong = _films(ids, 2051)
    zero = pa.array([0.0] * DIM, pa.float32())
    vectors = pa.concat_arrays([wrong["vector"].combine_chunks().flatten()[:-DIM], zero])
    column = pa.FixedSizeListArray.from_arrays(vectors, DIM)
    reply = _post_stream(f"{shop.url}/upsert", wrong.set_column(1, "vector", column))
    assert (reply.status, "zeros" in reply.json["error"]) == (422, True)
    many = np.arange(60_000, 70_001)
    for action, table in (
        ("upsert", _films(many, 2051)), ("delete", pa.table({"id": many})),
    ):  # fmt: skip
        reply = _post_stream(f"{shop.url}/{action}", table)
        assert reply.status == 413
        assert "10,001 rows in one request, at most 10,000" in reply.json["error"]
    assert index.matching("year == 2051").tolist() == []
    assert _post_stream(f"{shop.url}/delete", pa.table({"id": ids})).status == 200
    assert {counts["version"] for counts in index.status().values() if counts} == {before + 2}
