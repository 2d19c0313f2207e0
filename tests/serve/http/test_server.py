"""A replica's HTTP/1.1 server over a transport that only remembers."""

from typing import Any

import pytest

from raysys.serve.http._body_budget import BodyBudget
from raysys.serve.http._server import Connection, Headers, Respond

Asked = tuple[str, str, Headers, bytes, Respond]


class Wire:
    """What was sent, and whether the server hung up."""

    def __init__(self) -> None:
        self.sent, self.closed = b"", False

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def connect() -> tuple[Any, Wire, list[Asked]]:
    asked: list[Asked] = []
    wire = Wire()
    connection = Connection(lambda *request: asked.append(request), 10, BodyBudget(100))
    connection.connection_made(wire)  # type: ignore[arg-type]
    return connection, wire, asked


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_request_is_read_however_it_is_cut(size: int) -> None:
    connection, wire, asked = connect()
    request = b"POST /a%20b?q=1 HTTP/1.1\r\nX-One: 1\r\nContent-Length: 4\r\n\r\nbody"
    for start in range(0, len(request), size):
        connection.data_received(request[start : start + size])
    ((method, path, headers, body, respond),) = asked
    assert (method, path, body) == ("POST", "/a b", b"body")
    assert headers[b"x-one"] == b"1"
    respond(200, "text/plain", b"yes", {"x-more": "2"})
    head, _, answer = wire.sent.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert {b"content-length: 3", b"x-more: 2"} <= set(head.split(b"\r\n"))
    assert (answer, wire.closed) == (b"yes", False)


def test_requests_follow_each_other_on_a_connection() -> None:
    connection, wire, asked = connect()
    for path in ("/a", "/b"):
        connection.data_received(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        asked[-1][-1](200, "text/plain", path.encode())
    assert [path for _, path, *_ in asked] == ["/a", "/b"]
    assert wire.sent.count(b"HTTP/1.1 200") == 2


def test_the_connection_ends_when_the_client_wants_it() -> None:
    connection, wire, asked = connect()
    connection.data_received(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    asked[0][-1](200, "text/plain", b"")
    assert b"connection: close" in wire.sent
    assert wire.closed


def test_an_answer_to_head_has_no_body() -> None:
    connection, wire, asked = connect()
    connection.data_received(b"HEAD / HTTP/1.1\r\n\r\n")
    asked[0][-1](405, "text/plain", b"body")
    assert wire.sent.endswith(b"\r\n\r\n")


def test_who_asks_whether_to_send_a_body_is_told_to() -> None:
    connection, wire, asked = connect()
    connection.data_received(
        b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"
    )
    assert wire.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert asked == []


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET http://[ HTTP/1.1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 11\r\n\r\n" + b"x" * 11, b"413"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n" + b"x" * 11
         + b"\r\n0\r\n\r\n", b"413"),
    ],
    ids=["not http", "not a url", "length", "too large", "too large in chunks"],
)  # fmt: skip
def test_what_cannot_be_taken_is_refused_and_the_connection_ends(
    request_: bytes, status: bytes
) -> None:
    connection, wire, asked = connect()
    connection.data_received(request_)
    assert wire.sent.startswith(b"HTTP/1.1 " + status)
    assert wire.closed
    assert asked == []


def test_an_answer_to_a_client_that_has_gone_is_dropped() -> None:
    connection, wire, asked = connect()
    connection.data_received(b"GET / HTTP/1.1\r\n\r\n")
    wire.closed = True
    asked[0][-1](200, "text/plain", b"late")
    assert wire.sent == b""
