"""A deployed graph: batches, the HTTP contract, and a node in a deployment of its own."""

import concurrent.futures
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray

from raysys import cluster
from raysys.errors import RaysysError
from raysys.serve import Endpoint, undeploy
from tests.serve.conftest import Deployer
from tests.serve.serving import (
    Reply,
    branches_graph,
    counted_graph,
    double_graph,
    eventually,
    get,
    kill,
    load,
    post,
)


@pytest.fixture(scope="module")
def double(deployer: Deployer) -> Iterator[Endpoint]:
    yield deployer("double", double_graph(), route="/arithmetic/double")
    undeploy("double")


@pytest.fixture(scope="module")
def branches(deployer: Deployer) -> Iterator[Endpoint]:
    yield deployer("branches", branches_graph())
    undeploy("branches")


def at_once(url: str, bodies: list[Any]) -> list[Reply]:
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        return list(pool.map(lambda body: post(url, body), bodies))


def test_an_answer_equals_the_plain_call(double: Endpoint) -> None:
    plain = double_graph()({"x": [4], "k": [3]})
    assert double.predict({"x": 4, "k": 3}) == {name: column[0] for name, column in plain.items()}
    assert double.predict({"x": 4})["doubled"] == 8  # the default of k
    assert double.url == f"{double.base_url}/arithmetic/double"


def test_a_lone_request_is_a_batch_of_one(double: Endpoint) -> None:
    assert double.predict({"x": 4}) == {"doubled": 8, "batch": 1}


def test_requests_that_wait_are_answered_in_one_batch(double: Endpoint) -> None:
    replies = at_once(double.url, [{"x": x} for x in range(96)])
    assert [reply.json["doubled"] for reply in replies] == [2 * x for x in range(96)]
    sizes = [reply.json["batch"] for reply in replies]
    assert np.mean(sizes) > 4
    assert max(sizes) <= 64


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"x": "no"}, "x"),
        ({"x": 1.5}, "x"),
        ({"x": None}, "x"),
        ({}, "x"),
        ({"x": 1, "k": 0}, "k"),
        ({"x": 1, "k": [1]}, "k"),
    ],
)
def test_bad_input_gets_422_with_the_field_named(
    double: Endpoint, body: dict[str, Any], field: str
) -> None:
    reply = post(double.url, body)
    assert reply.status == 422
    assert reply.json["detail"][0]["loc"] == [field]
    assert reply.json["error"].startswith(f"{field}: ")


@pytest.mark.parametrize("x", [2**63, -(2**63) - 1, 10**30])
def test_an_integer_beyond_64_bits_gets_422(double: Endpoint, x: int) -> None:
    reply = post(double.url, {"x": x})
    assert reply.status == 422
    assert reply.json["error"].startswith("x: ")


@pytest.mark.parametrize("body", [b"", b"{nonsense", b"\xff\xfe", b"[1]", b"null", b"[" * 10_000])
def test_what_is_no_request_gets_422(double: Endpoint, body: bytes) -> None:
    reply = post(double.url, body)
    assert reply.status == 422
    assert reply.json["error"]


def test_another_content_type_gets_415(double: Endpoint) -> None:
    assert post(double.url, b"x=1", {"content-type": "text/plain"}).status == 415


def test_a_bad_request_fails_alone(double: Endpoint) -> None:
    wanted = {-1: 422, -2: 500}
    xs = [-1 if n % 16 == 5 else -2 if n % 16 == 11 else n for n in range(96)]
    replies = at_once(double.url, [{"x": x} for x in xs])
    for x, reply in zip(xs, replies, strict=True):
        assert reply.status == wanted.get(x, 200), (x, reply)
        if reply.status == 200:
            assert reply.json["doubled"] == 2 * x
    errors = {x: reply.json["error"] for x, reply in zip(xs, replies, strict=True) if x < 0}
    assert errors[-1] == "x: -1 is not answered"
    assert "node that fails" not in errors[-2]  # the log says it, with the request's id
    request = [reply.json["request_id"] for reply in replies if reply.status == 500][-1]
    assert f"--request {request}` prints why" in errors[-2]
    dashboard = cluster.Dashboard(f"http://{ray._private.worker.get_dashboard_url()}")
    app = double.url.rpartition("/")[2]
    lines = eventually(lambda: cluster.application_log(dashboard, app, request=request))
    assert f" v1 ERROR request {request} failed" in lines[0]
    assert "node that fails" in lines[0]
    with pytest.raises(RaysysError, match=rf"'{app}x' \(did you mean '{app}'\?\)"):
        cluster.application_log(dashboard, f"{app}x")
    # The good ones shared batches all the same.
    assert max(reply.json["batch"] for reply in replies if reply.status == 200) > 1


def test_health_docs_and_openapi(double: Endpoint) -> None:
    assert get(f"{double.url}/healthz").json == {"status": "ok"}
    docs = get(double.docs_url)
    assert docs.headers["content-type"].startswith("text/html")
    assert b"/arithmetic/double/openapi.json" in docs.body
    # The page loads all that it needs from the application, since its reader may be offline.
    loaded = re.findall(r'(?:src|href)="([^"]+)"', docs.body.decode())
    assert len(loaded) == 3
    assert b"http:" not in docs.body
    assert b"https:" not in docs.body
    origin = double.url.removesuffix("/arithmetic/double")
    for path in loaded:
        asset = get(origin + path)
        assert (path.startswith("/arithmetic/double/docs/"), asset.status) == (True, 200), path
        assert len(asset.body) > 500
    document = get(f"{double.url}/openapi.json").json
    assert set(document["paths"]) == {"/arithmetic/double", "/arithmetic/double/healthz"}
    question = document["components"]["schemas"]["Question"]
    assert set(question["properties"]) == {"x", "k"}
    assert question["properties"]["k"]["maximum"] == 5
    assert set(document["components"]["schemas"]["Response"]["properties"]) == {"doubled", "batch"}


def test_paths_and_methods_that_are_not_there(double: Endpoint) -> None:
    assert get(f"{double.base_url}/elsewhere").status == 404
    assert get(f"{double.url}/elsewhere").status == 404
    assert get(f"{double.base_url}/arithmetic/doubled").status == 404
    refused = get(double.url)
    assert (refused.status, refused.headers["allow"]) == (405, "POST, OPTIONS")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "a\n"])
def test_a_bad_name_is_refused(deployer: Deployer, name: str) -> None:
    with pytest.raises(RaysysError, match="use letters, digits"):
        deployer(name, double_graph())


@pytest.mark.parametrize("route", ["/", "/a b", "/a//b", "/v2", "/v2/models/x", "/a?b", "/a\n"])
def test_a_bad_route_is_refused(deployer: Deployer, route: str) -> None:
    with pytest.raises(RaysysError, match="give a path"):
        deployer("double", double_graph(), route=route)


def test_a_route_that_is_taken_is_refused(double: Endpoint, deployer: Deployer) -> None:
    from ray import serve

    with pytest.raises(RaysysError, match="route /arithmetic/double belongs to 'double'"):
        deployer("other", counted_graph(), route="/arithmetic/double")
    assert double.predict({"x": 4})["doubled"] == 8
    eventually(lambda: not [one for one in serve.status().applications if "other" in one])


def test_an_application_that_is_undeployed_is_gone(
    deployer: Deployer, capsys: pytest.CaptureFixture[str]
) -> None:
    brief = deployer("brief", counted_graph())
    assert "the endpoint 'brief' ends with the process that started" in capsys.readouterr().err
    assert post(brief.url, {"x": 1}).status == 200
    undeploy("brief")
    assert post(brief.url, {"x": 1}).status == 404
    assert get(f"{brief.base_url}/v2/models/brief/ready").status == 404
    with pytest.raises(RaysysError, match="no running application 'brief'"):
        undeploy("brief")
    again = deployer("brief", counted_graph())
    assert again.version == brief.version + 1
    assert post(again.url, {"x": 1}).status == 200
    undeploy("brief")


def test_a_graph_of_two_deployments_equals_the_plain_call(branches: Endpoint) -> None:
    xs = list(range(60))
    plain = branches_graph()({"x": xs})
    answers = [reply.json for reply in at_once(branches.url, [{"x": x} for x in xs])]
    assert [answer["value"] for answer in answers] == plain["value"].tolist()
    assert not {one["pid"] for one in answers} & {one["placed_pid"] for one in answers}


def test_a_bad_request_fails_alone_in_a_graph_of_two_deployments(branches: Endpoint) -> None:
    wanted = {-1: 422, -2: 500, -3: 422}
    xs = [-(n % 4) if n % 8 < 4 else n for n in range(64)]
    replies = at_once(branches.url, [{"x": x} for x in xs])
    assert [reply.status for reply in replies] == [wanted.get(x, 200) for x in xs]
    errors = {x: reply.json["error"] for x, reply in zip(xs, replies, strict=True) if x in wanted}
    assert errors[-1] == "x: -1 is not answered"
    assert errors[-3] == "x: -3 is not answered"


def test_a_killed_replica_of_a_placed_node_costs_no_request(branches: Endpoint) -> None:
    # As many clients as batches under way, so that no batch can be halved instead.
    with load(branches.url, lambda number: {"x": number}, clients=2, pause_s=0.0) as running:
        running.wait_for(50)
        before = {answer["placed_pid"] for answer in running.answers()}
        kill(min(before))
        # Serve puts another in its place.
        eventually(lambda: {one.json["placed_pid"] for _, one in running.replies[-50:]} - before)
        running.wait_for(50)
    assert len(running.answers()) > 100
