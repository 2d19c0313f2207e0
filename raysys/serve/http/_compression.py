"""Content codings of HTTP bodies, gzip and deflate, of requests and of responses."""

from __future__ import annotations

import asyncio
import gzip
import io
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from raysys.serve.http._server import TOO_LARGE, HTTPStatusError

if TYPE_CHECKING:
    from raysys.serve.http._server import Respond

_MIN_BYTES = 1024  # less than a packet is not worth the time
_IN_THREAD_BYTES = 1 << 16
_LEVEL = 1


def decompress(body: bytes, coding: str, max_bytes: int) -> bytes:
    """The body without its coding, the value of Content-Encoding.

    Stops at `max_bytes`: a bomb of a few kilobytes would otherwise fill the memory.

    Raises:
        HTTPStatusError: 415 for another coding, 400 for a body that is not of it, 413 for a body
            beyond the limit.
    """
    coding = coding.strip().lower().removeprefix("x-")
    if coding in ("", "identity"):
        return body
    if coding not in ("gzip", "deflate"):
        text = f"content-encoding {coding!r}: send gzip, deflate, or the body as it is"
        raise HTTPStatusError(415, text, {"accept-encoding": "gzip, deflate"})
    try:
        inflate = _gunzip if coding == "gzip" else _inflate
        plain = inflate(body, max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise HTTPStatusError(400, f"the body is not valid {coding}: {error}") from error
    if len(plain) > max_bytes:
        raise HTTPStatusError(413, f"{TOO_LARGE}: it decompresses to more than {max_bytes} bytes")
    return plain


def _gunzip(body: bytes, size: int) -> bytes:
    return gzip.GzipFile(fileobj=io.BytesIO(body)).read(size)


def _inflate(body: bytes, size: int) -> bytes:
    """Inflate zlib's format, or the bare stream that some clients send for it (RFC 9110, 8.4.1)."""
    has_header = len(body) > 1 and body[0] & 15 == 8 and not int.from_bytes(body[:2], "big") % 31
    stream = zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
    plain = stream.decompress(body, size)
    if len(plain) < size and not stream.eof:
        raise EOFError("it ends too early")
    if stream.unused_data:
        raise EOFError(f"{len(stream.unused_data)} bytes follow its end")
    return plain


def compressing(respond: Respond, accepted: str) -> Respond:
    """A `respond` that compresses large bodies for a client with this Accept-Encoding."""
    coding = _choose(accepted)
    if coding is None:
        return respond
    wbits = zlib.MAX_WBITS | (16 if coding == "gzip" else 0)

    def respond_compressed(
        status: int, kind: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        if len(body) < _MIN_BYTES:
            respond(status, kind, body, headers)
            return
        coded = {**(headers or {}), "content-encoding": coding, "vary": "accept-encoding"}
        if len(body) < _IN_THREAD_BYTES:
            respond(status, kind, zlib.compress(body, _LEVEL, wbits), coded)
            return
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(None, zlib.compress, body, _LEVEL, wbits)
        future.add_done_callback(lambda done: respond(status, kind, done.result(), coded))

    return respond_compressed


def _choose(accepted: str) -> str | None:
    """The coding of a response; None if the client accepts neither."""
    refused = set[str]()
    for choice in accepted.lower().split(","):
        name, _, weight = (part.strip() for part in choice.partition(";"))
        try:
            is_refused = not float(weight.partition("=")[2] or 1)
        except ValueError:
            is_refused = True
        if is_refused:
            refused.add(name)
        elif name in ("gzip", "deflate"):
            return name
        elif name == "*" and "gzip" not in refused:
            return "gzip"
    return None
