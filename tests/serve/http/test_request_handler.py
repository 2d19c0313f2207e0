"""Several graphs in one application: their paths, one document of them, and what is refused."""

import concurrent.futures
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
import schemathesis
import tritonclient.grpc
import tritonclient.http

from raysys.errors import ArgumentError, GraphError, RaysysError
from raysys.serve import Batching, Endpoint, deploy, undeploy
from raysys.serve._application import Application
from raysys.serve.protocols._openapi import document
from tests.serve.conftest import Deployer
from tests.serve.serving import (
    PATIENCE_S,
    Question,
    counted_graph,
    double_graph,
    eventually,
    get,
    post,
    shelf_graphs,
)

ACTIONS = ("put", "find", "go-far")


@pytest.fixture(scope="module")
def shelf(deployer: Deployer) -> Iterator[Endpoint]:
    yield deployer("shelf", shelf_graphs(), route="/books/shelf", example={"put": None})
    undeploy("shelf")


# --- what it answers ---


def test_actions_share_a_replica_and_its_objects(shelf: Endpoint) -> None:
    assert shelf.actions == ACTIONS
    assert post(f"{shelf.url}/find", {"number": 7}).json["title"] == "nothing"
    put = shelf.predict({"number": 7, "title": "Ulysses"}, action="put")
    found = post(f"{shelf.url}/find", {"number": 7}).json
    assert (put["put"], found["title"]) == (7, "Ulysses")
    assert put["pid"] == found["pid"]


def test_an_action_whose_example_is_none_has_not_run(shelf: Endpoint) -> None:
    assert shelf.predict({"number": 0}, action="find")["title"] == "nothing"  # else zeros were put


def test_a_node_of_an_action_has_its_own_deployment(shelf: Endpoint) -> None:
    here = shelf.predict({"number": 1}, action="find")["pid"]
    assert shelf.predict({"number": 1}, action="go-far")["far"] != here


def test_requests_to_all_actions_at_once_get_their_own_answers(shelf: Endpoint) -> None:
    def ask(number: int) -> Any:
        title = f"volume {number}"
        shelf.predict({"number": number, "title": title}, action="put")
        shelf.predict({"number": number}, action="go-far")
        return shelf.predict({"number": number}, action="find")["title"] == title

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(100, 200)))


def test_an_action_checks_its_own_inputs(shelf: Endpoint) -> None:
    refused = post(f"{shelf.url}/put", {"number": 1})
    assert (refused.status, refused.json["error"]) == (422, "title: Field required")
    assert post(f"{shelf.url}/find", {"number": 1}).status == 200
    refused = post(f"{shelf.url}/find", {"nummer": 1, "number": 1})
    assert refused.status == 422
    assert "'nummer' (did you mean 'number'?)" in refused.json["error"]


def test_paths_and_methods_that_are_not_there(shelf: Endpoint) -> None:
    for path in ("", "/", "/elsewhere", "/put/put", "/find/docs"):
        missing = post(shelf.url + path, {"number": 1})
        assert missing.status == 404
        assert "post to /books/shelf/put, /books/shelf/find" in missing.json["error"]
        assert "see /books/shelf/docs" in missing.json["error"]
    refused = get(f"{shelf.url}/put")
    assert (refused.status, refused.headers["allow"]) == (405, "POST, OPTIONS")


def test_one_document_shows_all_actions(shelf: Endpoint) -> None:
    assert get(f"{shelf.url}/healthz").json == {"status": "ok"}
    assert b"/books/shelf/openapi.json" in get(shelf.docs_url).body
    document = get(f"{shelf.url}/openapi.json").json
    paths = {f"/books/shelf/{action}" for action in ACTIONS}
    assert set(document["paths"]) == {*paths, "/books/shelf/healthz"}
    operations = [document["paths"][path]["post"]["operationId"] for path in sorted(paths)]
    assert operations == ["shelf-find", "shelf-go-far", "shelf-put"]
    fields = {
        name: sorted(schema["properties"])
        for name, schema in document["components"]["schemas"].items()
    }
    assert fields == {
        "putRequest": ["number", "title"],
        "findRequest": ["number"],
        "go-farRequest": ["number"],
        "findResponse": ["pid", "title"],
        "go-farResponse": ["far"],
        "Error": ["detail", "error", "request_id"],
    }


def test_requests_made_from_the_document_are_answered_by_it(shelf: Endpoint) -> None:
    schema = schemathesis.openapi.from_url(f"{shelf.url}/openapi.json")
    operations = {one.ok().path: one.ok() for one in schema.get_all_operations()}
    bodies = {"put": {"number": 3, "title": "Emma"}, "find": {"number": 3}, "go-far": {"number": 3}}
    for action, body in bodies.items():
        case = operations[f"/books/shelf/{action}"].Case(body=body, media_type="application/json")
        assert case.call_and_validate().status_code == 200


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
def test_the_model_of_an_action(shelf: Endpoint, module: Any) -> None:
    is_grpc = module is tritonclient.grpc
    address = shelf.grpc_address if is_grpc else shelf.base_url.removeprefix("http://")
    client = module.InferenceServerClient(address)
    assert client.is_model_ready("shelf/find")
    assert client.is_model_ready("shelf/find", str(shelf.version))
    assert not client.is_model_ready("shelf")
    assert not client.is_model_ready("shelf/elsewhere")
    metadata = client.get_model_metadata("shelf/put", **({"as_json": True} if is_grpc else {}))
    assert metadata["name"] == "shelf/put"
    assert [one["name"] for one in metadata["inputs"]] == ["number", "title"]
    tensor = module.InferInput("number", [2], "INT64")
    tensor.set_data_from_numpy(np.array([1, 2]))
    result = client.infer("shelf/go-far", [tensor])
    assert len(set(result.as_numpy("far").tolist())) == 1
    answer = result.get_response()
    assert (answer.model_name if is_grpc else answer["model_name"]) == "shelf/go-far"
    client.close()


def test_metrics_say_which_action(shelf: Endpoint) -> None:
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    wanted = [rf'batch_rows_count{{[^}}]*action="{action}"[^}}]*="shelf"' for action in ACTIONS]
    wanted.append(r'node_seconds_count{[^}]*action="go-far"[^}]*="shelf"[^}]*node="far"')

    def all_there() -> bool:
        for action in ACTIONS:
            title = {"title": "Dubliners"} if action == "put" else {}
            shelf.predict({"number": 5, **title}, action=action)
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as reply:
            text = reply.read().decode()
        return all(re.search(f"ray_raysys_serve_{pattern}", text) for pattern in wanted)

    eventually(all_there)


def test_a_version_may_have_other_actions(deployer: Deployer) -> None:
    counts = {"one": counted_graph(), "two": counted_graph()}
    many = deployer("changing", counts)
    assert [many.predict({"x": 1}, action=action)["count"] for action in counts] == [1, 1]
    alone = deployer("changing", counted_graph())
    assert alone.actions == ()
    assert alone.predict({"x": 1}) == {"count": 1}
    assert post(f"{alone.url}/one", {"x": 1}).status == 404
    undeploy("changing")


def test_actions_may_have_the_same_model_of_a_request() -> None:
    graphs = {"one": double_graph(), "two": double_graph()}
    application = Application(
        "twins", 1, "/twins", graphs, Batching(), 1.0, 1000, 0.0, {}, protected=True, token="t"
    )
    nothing = dict.fromkeys(graphs)
    made = document(application, dict.fromkeys(graphs, Question), nothing)
    assert sorted(made["components"]["schemas"]) == ["Error", "Question"]
    for action in graphs:
        post = made["paths"][f"/twins/{action}"]["post"]
        asked = post["requestBody"]["content"]["application/json"]["schema"]
        assert asked == {"$ref": "#/components/schemas/Question"}
        assert post["security"] == [{"key": []}]


def test_the_document_names_the_classes_of_probabilities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = double_graph()
    monkeypatch.setattr(type(graph), "classes", ["late", "on time"])
    application = Application(
        "flights", 1, "/flights", {"": graph}, Batching(), 1.0, 1000, 0.0, {}, protected=False,
        token="t",
    )  # fmt: skip
    example = {"y": np.array([[0.25, 0.75]]), "hours": np.array([0.5])}
    made = document(application, {"": Question}, {"": example})
    columns = made["components"]["schemas"]["Response"]["properties"]
    said = "Probabilities of the classes, in this order: late, on time"
    assert columns["y"]["description"] == said
    assert "description" not in columns["hours"]


# --- what is refused ---


@pytest.mark.parametrize("action", ["", "a b", "a/b", "ä", "a\n", "a.b", "..", 1, None])
def test_a_bad_name_of_an_action_is_refused(action: Any) -> None:
    with pytest.raises(GraphError, match="of application 'films': use letters, digits, _ and -"):
        deploy("films", {"search": double_graph(), action: double_graph()})


@pytest.mark.parametrize("action", ["docs", "healthz", "openapi.json"])
def test_the_name_of_a_path_that_is_there_already_is_refused(action: str) -> None:
    with pytest.raises(GraphError, match=f"action '{action}' .* choose another name"):
        deploy("films", {action: double_graph()})


def test_an_application_without_graphs_is_refused() -> None:
    with pytest.raises(GraphError, match="application 'films' has no actions: give a Graph"):
        deploy("films", {})
    with pytest.raises(ArgumentError, match=r"graph\['search'\] is a function, not a Graph"):
        deploy("films", {"search": double_graph})  # type: ignore[dict-item]


def test_an_example_of_no_action_is_refused() -> None:
    with pytest.raises(
        GraphError, match=r"examples for unknown actions \['x'\]; actions are \['search'\]"
    ):
        deploy("films", {"search": double_graph()}, example={"x": [1]})


def test_an_example_that_does_not_fit_names_what_is_wrong(deployer: Deployer) -> None:
    with pytest.raises(RaysysError, match=r"inputs \['x'\] are missing; given \['y'\]"):
        deployer("misfit", {"count": counted_graph()}, example={"count": {"y": [1]}})


def test_an_endpoint_names_its_actions() -> None:
    films = Endpoint("films", 1, "http://127.0.0.1:8000", "/films", None, ("search", "upsert"))
    assert films.curl({"x": 1}, action="search") == (
        "curl -s http://127.0.0.1:8000/films/search -H 'Content-Type: application/json' "
        "-d '{\"x\": 1}'"
    )
    for action in ("", "delete"):
        with pytest.raises(
            RaysysError, match=rf"no action '{action}': choose from \['search', 'up"
        ):
            films.predict({"x": 1}, action=action)
    alone = Endpoint("films", 1, "http://127.0.0.1:8000", "/films")
    assert "/films -H" in alone.curl({"x": 1})
    with pytest.raises(RaysysError, match="'films' has no action 'search': leave it out"):
        alone.curl({"x": 1}, action="search")
