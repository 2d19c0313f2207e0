"""A deployed graph: batches that batch, and the HTTP contract."""

import concurrent.futures
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, Field

from raysys.serve import Endpoint, Graph, deploy

PORT = 18432


class Question(BaseModel):
    x: int
    k: int = Field(1, ge=1, le=5)


class Answer(BaseModel):
    doubled: int
    batch: int


def build() -> Graph:
    def doubled(x: np.ndarray) -> np.ndarray:
        time.sleep(0.05)  # a model's time, in which the next batch gathers
        return 2 * x

    def answer(x: np.ndarray, k: np.ndarray, doubled: np.ndarray) -> list[dict[str, Any]]:
        return [{"doubled": int(value), "batch": len(x)} for value in doubled]

    return Graph(inputs=["x", "k"], nodes={"doubled": doubled, "answer": answer}, output="answer")


def deployed() -> Endpoint:
    return deploy(
        "double",
        build,
        route="/double",
        request=Question,
        response=Answer,
        prefix="/arithmetic",
        port=PORT,
    )


@pytest.fixture(scope="module")
def endpoint(ray_cluster: None) -> Iterator[Endpoint]:
    from ray import serve

    yield deployed()
    serve.delete("double")


def status_and_body(endpoint: Endpoint, body: bytes) -> tuple[int, Any]:
    call = urllib.request.Request(endpoint.url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(call, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_requests_that_wait_are_answered_in_one_batch(endpoint: Endpoint) -> None:
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda x: endpoint.ask({"x": x}), range(72)))
    assert [answer["doubled"] for answer in answers] == [2 * x for x in range(72)]
    sizes = [answer["batch"] for answer in answers]
    # With a batch for each request, 72 runs of the graph would have taken 3.6 s.
    assert np.mean(sizes) > 4
    assert max(sizes) <= 64


def test_a_lone_request_is_a_batch_of_one(endpoint: Endpoint) -> None:
    assert endpoint.ask({"x": 4}) == {"doubled": 8, "batch": 1}


@pytest.mark.parametrize(
    ("body", "field"),
    [({"x": "no"}, "x"), ({}, "x"), ({"x": 1, "k": 0}, "k"), ({"x": 1, "k": 6}, "k")],
)
def test_bad_input_gets_422_with_the_field_named(
    endpoint: Endpoint, body: dict[str, Any], field: str
) -> None:
    status, answer = status_and_body(endpoint, json.dumps(body).encode())
    assert status == 422
    assert answer["detail"][0]["loc"][-1] == field


def test_what_is_no_json_gets_422(endpoint: Endpoint) -> None:
    assert status_and_body(endpoint, b"{nonsense")[0] == 422


def test_health_and_openapi(endpoint: Endpoint) -> None:
    with urllib.request.urlopen(f"{endpoint.base_url}/healthz", timeout=30) as reply:
        assert json.load(reply) == {"status": "ok"}
    with urllib.request.urlopen(f"{endpoint.base_url}/openapi.json", timeout=30) as reply:
        description = json.load(reply)
    assert set(description["paths"]) == {"/double", "/healthz"}
    assert set(description["components"]["schemas"]["Question"]["properties"]) == {"x", "k"}


def test_a_redeployment_answers_all_the_while(endpoint: Endpoint) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        redeployed = pool.submit(deployed)
        asked = 0
        while not redeployed.done():
            assert endpoint.ask({"x": asked})["doubled"] == 2 * asked
            asked += 1
    assert redeployed.result() == endpoint
    assert asked > 10
