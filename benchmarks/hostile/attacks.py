"""Attacks: each goes on until it is told to stop; all of them only ask this machine's loopback."""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from benchmarks.serving import ours

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raysys.serve import Endpoint

ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"
_SOURCE = "127.0.0.2"
_MIB = 1 << 20
_PATIENCE_S = 40.0


def unfinished_bodies(endpoint: Endpoint, stop: threading.Event) -> None:
    """64 connections that send half of a body of 100 kB, and then nothing."""
    with _opened() as connections:
        while not stop.wait(0.2):
            while len(connections) < 64:
                connections.append(_begin(endpoint, 100_000, 50_000))
            connections[:] = [each for each in connections if not _is_over(each)]


def unfinished_large_bodies(endpoint: Endpoint, stop: threading.Event) -> None:
    """60 connections that send 15 MiB of 15.5, and then nothing."""
    with _opened() as connections:
        for _ in range(60):
            if stop.is_set():
                return
            with contextlib.suppress(OSError):
                connections.append(_begin(endpoint, 31 * _MIB // 2, 15 * _MIB))
        stop.wait()


def idle_connections(endpoint: Endpoint, stop: threading.Event) -> None:
    """8,400 connections that stay open after one request each."""
    with _opened() as connections:
        for _ in range(8400):
            if stop.is_set():
                return
            with contextlib.suppress(OSError):
                connection = _connect(endpoint)
                connections.append(connection)
                body = json.dumps({"x": [1.0]}).encode()
                connection.sendall(_head(endpoint, len(body)) + body)
                connection.recv(4096)
        stop.wait()


def arrow_bomb(endpoint: Endpoint, stop: threading.Event) -> None:
    """An Arrow stream of some kB whose compressed buffers expand to a gigabyte."""
    rows = 1 << 20
    values = pa.ListArray.from_arrays(
        np.arange(rows + 1, dtype=np.int32) * 64, pa.array(np.zeros(64 * rows))
    )
    table = pa.table({"x": values, "deed": pa.array(np.zeros(rows, np.int64))})
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    repeat(endpoint, stop, sink.getvalue(), ARROW, pause_s=1.0)


def wrong_elements(endpoint: Endpoint, stop: threading.Event) -> None:
    """A JSON list of 15 MB of wrong elements."""
    body = b'{"x": [' + b",".join([b'"a"'] * (15_000_000 // 4)) + b"]}"
    repeat(endpoint, stop, body, JSON, pause_s=1.0)


def unknown_fields(endpoint: Endpoint, stop: threading.Event) -> None:
    """A JSON object of 15 MB of unknown fields."""
    fields = b",".join(b'"%x":0' % number for number in range(1_400_000))
    repeat(endpoint, stop, b'{"x": [1.0],' + fields + b"}", JSON, pause_s=1.0)


def many_outputs(endpoint: Endpoint, stop: threading.Event) -> None:
    """A v2 request of 15 MB that names outputs."""
    tensors = [
        {"name": "x", "datatype": "FP64", "shape": [1, 1], "data": [1.0]},
        {"name": "deed", "datatype": "INT64", "shape": [1], "data": [0]},
    ]
    names = [{"name": f"{number:x}"} for number in range(800_000)]
    body = json.dumps({"inputs": tensors, "outputs": names}).encode()
    repeat(endpoint, stop, body, JSON, f"/v2/models/{endpoint.name}/infer", pause_s=1.0)


def deed(number: int, each_s: float = 5.0) -> Callable[[Endpoint, threading.Event], int]:
    """A request whose row does one of `DEEDS`, again and again, never the same; their number."""

    def attack(endpoint: Endpoint, stop: threading.Event) -> int:
        def send(turn: int) -> None:
            body = json.dumps({"x": [float(turn)], "deed": number}).encode()
            ask(endpoint, body, JSON, endpoint.route)

        for turn in itertools.count(1):
            threading.Thread(target=send, args=(turn,), daemon=True).start()
            if stop.wait(each_s):
                break
        return turn

    return attack


def kill_supervisor(endpoint: Endpoint, stop: threading.Event) -> None:
    """`kill -9` of the process that keeps the gateway's port, every 5 s."""
    while not stop.wait(1.0):
        oldest = min(ours.supervisors(), key=lambda process: process.create_time())
        oldest.kill()
        if stop.wait(4.0):
            return


Attack = Callable[["Endpoint", threading.Event], object]
ATTACKS: dict[str, Attack] = {
    "64 unfinished bodies": unfinished_bodies,
    "60 unfinished bodies of 15 MiB": unfinished_large_bodies,
    "8,400 idle connections": idle_connections,
    "an Arrow stream that expands": arrow_bomb,
    "a JSON list of wrong elements": wrong_elements,
    "a JSON object of unknown fields": unknown_fields,
    "a v2 request that names outputs": many_outputs,
    "sys.exit in a node": deed(3, 1.0),
    "KeyboardInterrupt in a node": deed(4, 1.0),
    "CancelledError in a node": deed(5, 1.0),
}
POISONS: dict[str, Callable[[Endpoint, threading.Event], int]] = {
    "os._exit in a node every 5 s": deed(1),
    "a crash in a node every 5 s": deed(2),
    "a node that hangs every 5 s": deed(6),
    "a node that holds the interpreter every 5 s": deed(7),
}


def repeat(
    endpoint: Endpoint, stop: threading.Event, body: bytes, kind: str, path: str = "",
    *, pause_s: float,
) -> None:  # fmt: skip
    """Send a request again and again."""
    while not stop.is_set():
        ask(endpoint, body, kind, path or endpoint.route)
        stop.wait(pause_s)


def ask(endpoint: Endpoint, body: bytes, kind: str, path: str) -> Any:
    """Status of the response; None if there is none."""
    address = urlsplit(endpoint.base_url)
    connection = http.client.HTTPConnection(
        address.hostname or "", address.port, _PATIENCE_S, source_address=(_SOURCE, 0)
    )
    try:
        connection.request("POST", path, body, {"content-type": kind})
        reply = connection.getresponse()
        reply.read()
        return reply.status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _connect(endpoint: Endpoint) -> socket.socket:
    address = urlsplit(endpoint.base_url)
    return socket.create_connection(
        (address.hostname or "", address.port or 0), 10.0, source_address=(_SOURCE, 0)
    )


def _head(endpoint: Endpoint, length: int) -> bytes:
    return (
        f"POST {endpoint.route} HTTP/1.1\r\nhost: target\r\ncontent-type: {JSON}\r\n"
        f"content-length: {length}\r\n\r\n"
    ).encode()


def _begin(endpoint: Endpoint, length: int, sent: int) -> socket.socket:
    """A connection that has sent a part of a body."""
    connection = _connect(endpoint)
    with contextlib.suppress(OSError):
        connection.sendall(_head(endpoint, length) + b'{"x": [' + b"1," * (sent // 2))
    return connection


def _is_over(connection: socket.socket) -> bool:
    """Whether the server has answered or hung up."""
    connection.setblocking(False)
    try:
        connection.recv(4096)
    except BlockingIOError:
        return False
    except OSError:
        pass
    connection.close()
    return True


@contextlib.contextmanager
def _opened() -> Iterator[list[socket.socket]]:
    connections: list[socket.socket] = []
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()
        time.sleep(0.1)
