"""A replica's HTTP/1.1 server, for HAProxy and the holding proxy as its only clients.

An ASGI server creates a task, a scope and several messages per request, which costs more than a
row's share of a batch. Here a request is a call and its response one write; httptools (llhttp)
parses, after HAProxy has validated the request.
"""

from __future__ import annotations

import asyncio
import http
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import httptools
import orjson

from raysys.gateway import MAX_BODY_HEADER
from raysys.serve.http._body_budget import FREE_BYTES, BodyBudget, HeldBody

Headers = dict[bytes, bytes]
"""Header values by lower-case name; the last of repeated ones."""


class Respond(Protocol):
    """Callback that sends the response to a request, once."""

    def __call__(
        self, status: int, kind: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send status, content type, body and additional headers."""


Handle = Callable[[str, str, Headers, bytes, Respond], None]
"""Takes method, path, headers, body, and the callback for the response, now or later."""

_STATUS = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    for status in http.HTTPStatus
}
TOO_LARGE = "the body is too large"
_MALFORMED = "the request cannot be read as HTTP"
# A client reads a refusal only after it has sent its body, so that much is read and dropped.
_DRAIN_BYTES = 64 << 20


class HTTPStatusError(Exception):
    """A response with a status other than 200."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.headers = status, dict(headers or {})
        self.body: dict[str, Any] = {"error": text}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, str(self), self.headers), {"body": self.body}


def request_id(headers: Headers) -> str:
    """The request's id, which HAProxy sets where the client does not."""
    return headers.get(b"x-request-id", b"").decode("latin-1")


def body_limit(headers: Headers, max_body_bytes: int) -> int:
    """Maximum size of a body, decompressed: the application's, or the API key's if it is less."""
    limit = headers.get(MAX_BODY_HEADER.encode(), b"")
    return min(int(limit), max_body_bytes) if limit.isdigit() else max_body_bytes


class Connection(asyncio.Protocol):
    """One connection, without pipelining: a request follows the response to the previous one.

    asyncio calls `connection_made` and `data_received`, httptools the methods `on_*`.
    """

    def __init__(self, handle: Handle, max_body_bytes: int, budget: BodyBudget) -> None:
        """Call `handle` with each request; larger bodies get 413, and the connection is closed."""
        self._handle, self._max_body_bytes, self._budget = handle, max_body_bytes, budget
        self._held: HeldBody | None = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._begin()

    def _begin(self) -> None:
        self._url, self._headers = b"", dict[bytes, bytes]()
        self._parts: list[bytes] = []
        self._size, self._is_open = 0, False
        self._limit = self._max_body_bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end(400, _MALFORMED)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._limit = body_limit(self._headers, self._max_body_bytes)
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._transport.is_closing():
            return
        if self._size <= self._limit:
            self._parts.append(body)
            if self._size > FREE_BYTES:
                self._held = self._held or HeldBody(self._end)
                self._budget.grow(self._held, self._size)
        elif self._size > self._limit + _DRAIN_BYTES:
            self._end(413, TOO_LARGE)

    def on_message_complete(self) -> None:
        if self._transport.is_closing():
            return
        if self._is_open:  # pipelining, which neither HAProxy nor the holding proxy does
            self._end(400, _MALFORMED)
            return
        if self._size > self._limit:
            self._end(413, TOO_LARGE)
            return
        method = self._parser.get_method().decode("latin-1")
        keep_alive, headers = self._parser.should_keep_alive(), self._headers
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        path = (httptools.parse_url(self._url).path or b"/").decode("latin-1")
        if "%" in path:
            path = urllib.parse.unquote(path)
        self._begin()
        self._is_open = True
        long_body, self._held = self._held, None
        if long_body:
            long_body.is_complete = True

        def respond(
            status: int, kind: str, body: bytes, headers: Mapping[str, str] | None = None
        ) -> None:
            self._is_open = False
            if long_body:
                self._budget.end(long_body)
            more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
            if not keep_alive:
                more += "connection: close\r\n"
            if status != http.HTTPStatus.NO_CONTENT:
                more += f"content-type: {kind}\r\ncontent-length: {len(body)}\r\n"
            sent = b"" if method == "HEAD" else body
            if not self._transport.is_closing():
                self._transport.write(_STATUS[status] + f"{more}\r\n".encode("latin-1") + sent)
            if not keep_alive:
                self._transport.close()

        self._handle(method, path, headers, body, respond)

    def connection_lost(self, _: Exception | None) -> None:
        if self._held:
            self._budget.end(self._held)

    def _end(self, status: int, text: str) -> None:
        """Respond with an error and close the connection."""
        self._parts.clear()
        if not self._transport.is_closing():
            body = orjson.dumps({"error": text, "request_id": request_id(self._headers)})
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            head += "connection: close\r\n\r\n"
            self._transport.write(_STATUS[status] + head.encode() + body)
            self._transport.close()
