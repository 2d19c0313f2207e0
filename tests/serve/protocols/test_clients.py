"""What other people's clients ask besides a plain inference: codings, chunks, HEAD, OPTIONS."""

import gzip
import http.client
import json
import queue
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from raysys.gateway import ANNOUNCE_S
from raysys.serve import Endpoint, HTTPOptions, undeploy
from tests.serve.conftest import Deployer
from tests.serve.protocols.test_protocols import ROWS, Triton, assert_plain, json_body
from tests.serve.serving import Client, eventually, mixed_graph

MAX_BODY = 100_000


@pytest.fixture(scope="module")
def shared(deployer: Deployer) -> Iterator[Endpoint]:
    """An application with a small body limit, for web pages too."""
    http = HTTPOptions(max_body_bytes=MAX_BODY, cors_origins=("https://page.example",))
    yield deployer("shared", mixed_graph(), http=http)
    undeploy("shared")


@pytest.fixture(params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, mixed: Endpoint) -> Iterator[Triton]:
    """Both clients; `how` makes the one of gRPC return dictionaries as the one of HTTP does."""
    if request.param == "http":
        client = Triton(tritonclient.http, mixed.base_url.removeprefix("http://"))
        client.how = {}
    else:
        client = Triton(tritonclient.grpc, str(mixed.grpc_address))
        client.how = {"as_json": True}
    yield client
    client.client.close()


# --- codings and chunks ---


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_triton_may_compress_requests_and_responses(mixed: Endpoint, coding: str) -> None:
    triton = Triton(tritonclient.http, mixed.base_url.removeprefix("http://"))
    for binary in (True, False):
        result = triton.client.infer(
            "mixed", triton.inputs(binary_data=binary),
            request_compression_algorithm=coding, response_compression_algorithm=coding,
        )  # fmt: skip
        assert_plain(result)
    triton.client.close()


def test_a_large_response_is_compressed_for_who_accepts_it(mixed: Endpoint) -> None:
    client, path = Client(mixed.url), f"{mixed.url.removeprefix(mixed.base_url)}/openapi.json"
    plain = client.ask("GET", path)
    coded = client.ask("GET", path, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert coded.headers["content-encoding"] == "gzip"
    assert gzip.decompress(coded.body) == plain.body
    client.close()


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (gzip.compress(json_body()[0], mtime=0), 200, ""),
        (gzip.compress(bytes(MAX_BODY + 1), mtime=0), 413, f"more than {MAX_BODY} bytes"),
        (json_body()[0], 400, "the body is not valid gzip"),
        (gzip.compress(b"{", mtime=0), 422, "the body: Invalid JSON"),
    ],
)
def test_a_compressed_body_is_read_or_refused_with_a_reason(
    shared: Endpoint, body: bytes, status: int, text: str
) -> None:
    client = Client(shared.url)
    reply = client.post(body, {"content-encoding": "gzip", "x-request-id": "mine"})
    assert reply.status == status
    if status != 200:
        assert reply.json["request_id"] == "mine"
        assert text in reply.json["error"]
    client.close()


def test_a_body_may_come_in_chunks_within_the_limit(shared: Endpoint) -> None:
    connection = http.client.HTTPConnection(shared.base_url.removeprefix("http://"), timeout=20)
    body = json_body()[0]
    for coding, parts in (("identity", [body[:5], body[5:]]), ("deflate", [zlib.compress(body)])):
        headers = {"content-type": "application/json"} | (
            {"content-encoding": coding} if coding else {}
        )
        connection.request("POST", shared.route, iter(parts), headers, encode_chunked=True)
        reply = connection.getresponse()
        assert (reply.status, json.load(reply)["next"]) == (200, 1)
    connection.close()


@pytest.mark.parametrize("chunked", [True, False])
def test_urllib_reads_that_its_body_is_too_large(shared: Endpoint, chunked: bool) -> None:
    parts: Any = (bytes(100_000) for _ in range(100))
    request = urllib.request.Request(shared.url, parts if chunked else b"".join(parts))
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    with refused.value as error:
        answer = json.load(error)
        assert (error.code, answer["error"]) == (413, "the body is too large")
        assert answer["request_id"] == error.headers["x-request-id"]


# --- extensions of the Open Inference Protocol, as Triton has them ---


def test_triton_gets_the_configuration_of_a_model(triton: Triton) -> None:
    config = triton.client.get_model_config("mixed", **triton.how)
    config = config.get("config", config)
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("mixed", "raysys", 64)
    inputs = {
        one["name"]: (one["data_type"], list(map(int, one.get("dims", []))))
        for one in config["input"]
    }
    assert inputs == {
        "vector": ("TYPE_FP32", [3]), "weight": ("TYPE_INT64", []),
        "name": ("TYPE_STRING", []), "flag": ("TYPE_BOOL", []),
    }  # fmt: skip
    outputs = {one["name"]: list(map(int, one.get("dims", []))) for one in config["output"]}
    assert outputs["turned"] == [2, 3]
    with pytest.raises(InferenceServerException):
        triton.client.get_model_config("mixed", "99")


def test_triton_lists_the_models(triton: Triton) -> None:
    index = triton.client.get_model_repository_index(**triton.how)
    models = index["models"] if isinstance(index, dict) else index
    (mixed,) = [one for one in models if one["name"] == "mixed"]
    assert (mixed["version"], mixed["state"]) == ("1", "READY")


def test_triton_gets_the_statistics_of_a_model(triton: Triton) -> None:
    def statistics(*which: str) -> dict[str, Any]:
        described = triton.client.get_inference_statistics(*which, **triton.how)["model_stats"]
        (mixed,) = [one for one in described if one["name"] == "mixed"]
        assert mixed["version"] == "1"
        return mixed

    time.sleep(2 * ANNOUNCE_S)  # until the requests of other tests are counted
    before = statistics("mixed", "1")
    for _ in range(3):
        triton.client.infer("mixed", triton.inputs())
    rows = int(before.get("inference_count", 0)) + 3 * ROWS
    eventually(lambda: int(statistics("mixed")["inference_count"]) == rows)
    after = statistics("mixed")
    assert int(after["last_inference"]) / 1000 == pytest.approx(time.time(), abs=30)
    for stage in ("success", "queue", "compute_infer"):
        counts = [one["inference_stats"].get(stage, {}).get("count", 0) for one in (before, after)]
        assert int(counts[1]) - int(counts[0]) == 3
    sizes = {int(one["batch_size"]): one["compute_infer"] for one in after["batch_stats"]}
    assert int(sizes[ROWS]["ns"]) > 0
    assert statistics()["inference_count"] == after["inference_count"]
    with pytest.raises(InferenceServerException):
        triton.client.get_inference_statistics("mixed", "99")
    with pytest.raises(InferenceServerException):
        triton.client.get_inference_statistics("nobody")


def test_triton_streams_requests_over_grpc(mixed: Endpoint) -> None:
    assert mixed.grpc_address
    triton = Triton(tritonclient.grpc, mixed.grpc_address)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    triton.client.start_stream(lambda result, error: answers.put((result, error)))
    inputs = triton.inputs()
    for some in (inputs, inputs[:-1], inputs):
        triton.client.async_stream_infer("mixed", some)
    first, second, third = (answers.get(timeout=20) for _ in range(3))
    triton.client.stop_stream()
    triton.client.close()
    for result, error in (first, third):
        assert error is None
        assert_plain(result)
    assert "missing inputs ['flag']" in str(second[1])


# --- methods, and web pages of another origin ---


def test_head_options_and_errors_on_every_kind_of_path(shared: Endpoint) -> None:
    client, route, model = Client(shared.url), shared.route, "/v2/models/shared"
    for path in (f"{route}/healthz", f"{route}/openapi.json", f"{route}/docs", model):
        head = client.ask("HEAD", path)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(client.ask("GET", path).body))
        assert client.ask("OPTIONS", path).headers["allow"] == "GET, HEAD, OPTIONS"
    for path in (route, f"{model}/infer"):
        asked = client.ask("OPTIONS", path)
        assert (asked.status, asked.headers["allow"]) == (204, "POST, OPTIONS")
    json_type = {"content-type": "application/json"}
    refusals = [
        ("GET", "/nowhere", b"", {}, 404),
        ("POST", f"{route}/nowhere", b"", {}, 404),
        ("PUT", route, b"{}", json_type, 405),
        ("POST", route, b"{}", {"content-type": "text/plain"}, 415),
        ("POST", route, b"{}", {**json_type, "content-encoding": "br"}, 415),
        ("POST", route, b"{}", json_type, 422),
        ("POST", f"{model}/infer", b"{", {}, 400),
        ("POST", f"{model}/versions/99/infer", b"{}", {}, 404),
        ("GET", f"{model}/versions/99/stats", b"", {}, 404),
        ("POST", f"{model}/stats", b"{}", {}, 405),
        ("POST", f"{model}/config", b"{}", {}, 405),
        ("POST", "/v2/models/stats", b"", {}, 405),
        ("GET", "/v2/repository/index", b"", {}, 405),
        ("POST", "/v2/repository/index", b"{", {}, 400),
        ("POST", "/v2/repository/index", b" " * 100_000, {}, 413),
    ]
    for method, path, body, headers, status in refusals:
        reply = client.ask(method, path, body, {**headers, "x-request-id": "mine"})
        assert reply.status == status, (path, reply)
        assert reply.headers["content-type"].startswith("application/json")
        assert (reply.json["request_id"], bool(reply.json["error"])) == ("mine", True)
    client.close()


def test_a_page_of_an_allowed_origin_may_ask(shared: Endpoint) -> None:
    client = Client(shared.url)
    origin = {"origin": "https://page.example"}
    before = client.ask("OPTIONS", headers={**origin, "access-control-request-method": "POST"})
    assert before.status == 204
    for reply in (before, client.post(json_body()[0], origin), client.post(b"{", origin)):
        assert reply.headers["access-control-allow-origin"] == origin["origin"]
    assert "access-control-allow-origin" not in client.post(json_body()[0]).headers
    client.close()
