"""What other people's clients ask besides a plain inference: codings, chunks, HEAD, OPTIONS."""

import gzip
import http.client
import json
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import tritonclient.http

from raysys.serve import Endpoint, HTTPOptions, undeploy
from tests.serve.conftest import Deployer
from tests.serve.protocols.test_protocols import Triton, assert_plain, json_body
from tests.serve.serving import Client, mixed_graph

MAX_BODY = 100_000


@pytest.fixture(scope="module")
def shared(deployer: Deployer) -> Iterator[Endpoint]:
    """An application with a small body limit, for web pages too."""
    http = HTTPOptions(max_body_bytes=MAX_BODY, cors_origins=("https://page.example",))
    yield deployer("shared", mixed_graph(), http=http)
    undeploy("shared")


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
        (gzip.compress(json_body()[0]), 200, ""),
        (gzip.compress(bytes(MAX_BODY + 1)), 413, f"more than {MAX_BODY} bytes"),
        (json_body()[0], 400, "the body is not valid gzip"),
        (gzip.compress(b"{"), 422, "the body: Invalid JSON"),
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
    ]
    for method, path, body, headers, status in refusals:
        reply = client.ask(method, path, body, {**headers, "x-request-id": "mine"})
        assert reply.status == status, (path, reply)
        assert reply.headers["content-type"] == "application/json"
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
