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
_TOO_LARGE = b'{"error": "the body is too large"}'
_MALFORMED = b'{"error": "the request cannot be read as HTTP"}'


class Connection(asyncio.Protocol):
    """One connection, without pipelining: a request follows the response to the previous one.

    asyncio calls `connection_made` and `data_received`, httptools the methods `on_*`.
    """

    def __init__(self, handle: Handle, max_body_bytes: int) -> None:
        """Call `handle` with each request; larger bodies get 413, and the connection is closed."""
        self._handle, self._max_body_bytes = handle, max_body_bytes
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._begin()

    def _begin(self) -> None:
        self._url, self._headers = b"", dict[bytes, bytes]()
        self._parts: list[bytes] = []
        self._size, self._is_open = 0, False

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
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size <= self._max_body_bytes:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._is_open:  # pipelining, which neither HAProxy nor the holding proxy does
            self._end(400, _MALFORMED)
            return
        if self._size > self._max_body_bytes:
            self._end(413, _TOO_LARGE)
            return
        method = self._parser.get_method().decode("latin-1")
        keep_alive, headers = self._parser.should_keep_alive(), self._headers
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        path = (httptools.parse_url(self._url).path or b"/").decode("latin-1")
        if "%" in path:
            path = urllib.parse.unquote(path)
        self._begin()
        self._is_open = True

        def respond(
            status: int, kind: str, body: bytes, headers: Mapping[str, str] | None = None
        ) -> None:
            self._is_open = False
            more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
            if not keep_alive:
                more += "connection: close\r\n"
            head = f"content-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
            sent = b"" if method == "HEAD" else body
            if not self._transport.is_closing():
                self._transport.write(_STATUS[status] + head.encode("latin-1") + sent)
            if not keep_alive:
                self._transport.close()

        self._handle(method, path, headers, body, respond)

    def _end(self, status: int, body: bytes) -> None:
        """Respond with an error and close the connection."""
        if not self._transport.is_closing():
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            head += "connection: close\r\n\r\n"
            self._transport.write(_STATUS[status] + head.encode() + body)
            self._transport.close()
