"""HAProxy in front of replicas that echo what reaches them."""

import contextlib
import hashlib
import http.client
import http.server
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysys.gateway import Backend
from raysys.gateway._haproxy_config import ApiKey, HAProxySettings
from raysys.gateway._haproxy_process import HAProxy

TOKEN = "token-of-the-replicas"
SAFETY_S = 20.0
Servers = Mapping[str, Mapping[int, tuple[str, int]]]


class Replica(http.server.ThreadingHTTPServer):
    """Outputs with what it was asked, as JSON; `alive` and `mortal` say how well it is."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, name: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), EchoHandler)
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


class EchoHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Replica

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/-/alive":
            self._say(200 if self.server.alive else 404, b"{}")
            return
        body = self._body()
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

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_OPTIONS = do_GET  # noqa: N815


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

    def connect(self, source: str = "127.0.0.1") -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=SAFETY_S, source_address=(source, 0)
        )
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
            json.loads(answer.read() or b"null"),
        )
        if connection is None:
            on.close()
        return reply


def app(
    name: str, route: str | None = None, *, protected: bool = False, body: int = 1000
) -> Backend:
    return Backend(name, 1, route or f"/{name}", 10.0, body, protected)


def key(name: str, secret: str, rate: int = 10_000, body: int = 1000, **granted: Any) -> ApiKey:
    return ApiKey(name, hashlib.sha256(secret.encode()).hexdigest(), rate, body, **granted)


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


Starter = Callable[..., Front]
Maker = Callable[..., Replica]


@contextlib.contextmanager
def running_replicas() -> Iterator[Maker]:
    made: list[Replica] = []

    def make(name: str, port: int = 0) -> Replica:
        made.append(Replica(name, port))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@contextlib.contextmanager
def running_fronts(folder: Path, replica: Maker) -> Iterator[Starter]:
    started: list[Front] = []

    def start(
        backends: Sequence[Backend], servers: Servers, keys: Sequence[ApiKey] = (), **limits: Any
    ) -> Front:
        port, holding = free_port(), replica("holding")
        name = folder / str(len(started))
        settings = HAProxySettings(name, "127.0.0.1", port, holding.server_port, TOKEN, **limits)
        proxy = HAProxy(settings)
        started.append(Front(proxy, port, holding))
        proxy.apply(backends, servers, keys)
        return started[-1]

    yield start
    for front in started:
        front.proxy.stop()
        for connection in front.connections:
            connection.close()
