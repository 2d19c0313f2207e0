"""Bodies in gzip and deflate, good and hostile, and responses for clients that accept them."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Mapping
from typing import Any

import pytest

from raysys.serve.http._compression import compressing, decompress
from raysys.serve.http._server import HTTPStatusError
from tests.serve.asynchronous import in_loop

PLAIN = b'{"x": 1}' * 1000
RAW = zlib.compressobj(wbits=-zlib.MAX_WBITS)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(PLAIN, mtime=0)),
        (" GZIP ", gzip.compress(PLAIN, mtime=0)),
        ("x-gzip", gzip.compress(PLAIN[:10], mtime=0) + gzip.compress(PLAIN[10:], mtime=0)),
        ("deflate", zlib.compress(PLAIN)),
        ("deflate", RAW.compress(PLAIN) + RAW.flush()),
    ],
    ids=["gzip", "case", "members", "zlib", "raw"],
)
def test_a_body_comes_out_as_it_was(coding: str, body: bytes) -> None:
    assert decompress(body, coding, len(PLAIN)) == PLAIN


@pytest.mark.parametrize(
    ("coding", "body", "status", "text"),
    [
        ("br", b"", 415, "content-encoding 'br': send gzip, deflate"),
        ("gzip, gzip", b"", 415, "send gzip, deflate"),
        ("gzip", PLAIN, 400, "not valid gzip"),
        ("gzip", gzip.compress(PLAIN, mtime=0)[:-9], 400, "not valid gzip"),
        ("gzip", gzip.compress(PLAIN, mtime=0) + b"more", 400, "not valid gzip"),
        ("deflate", PLAIN, 400, "not valid deflate"),
        ("deflate", b"", 400, "not valid deflate"),
        ("deflate", zlib.compress(PLAIN)[:-9], 400, "it ends too early"),
        ("deflate", zlib.compress(PLAIN) + b"more", 400, "4 bytes follow"),
        ("gzip", gzip.compress(PLAIN + b"x", mtime=0), 413, "decompresses to more than 8000 bytes"),
        ("deflate", zlib.compress(PLAIN + b"x"), 413, "decompresses to more than 8000 bytes"),
    ],
)
def test_a_body_that_is_not_what_it_says_is_refused(
    coding: str, body: bytes, status: int, text: str
) -> None:
    with pytest.raises(HTTPStatusError, match=text) as refused:
        decompress(body, coding, len(PLAIN))
    assert refused.value.status == status


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_takes_no_more_memory_than_the_limit(coding: str) -> None:
    wbits = zlib.MAX_WBITS | (16 if coding == "gzip" else 0)
    bomb = zlib.compress(bytes(200 << 20), 9, wbits)
    assert len(bomb) < 300_000
    tracemalloc.start()
    with pytest.raises(HTTPStatusError, match="decompresses"):
        decompress(bomb, coding, 1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("gzip, deflate, br", "gzip"),
        ("br;q=1.0, deflate;q=0.5", "deflate"),
        ("gzip;q=0, *", None),
        ("*", "gzip"),
        ("identity", None),
        ("", None),
        ("gzip;q=x", None),
    ],
)
@in_loop
async def test_a_large_response_has_a_coding_that_the_client_accepts(
    accepted: str, coding: str | None
) -> None:
    for size in (100, 2000, 200_000):
        sent: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def respond(
            status: int, kind: str, body: bytes, headers: Mapping[str, str] | None = None,
            sent: asyncio.Future[Any] = sent,
        ) -> None:  # fmt: skip
            sent.set_result((status, kind, body, dict(headers or {})))

        compressing(respond, accepted)(200, "text/plain", b"x" * size, {"x-more": "1"})
        status, kind, body, headers = await sent
        assert (status, kind, headers["x-more"]) == (200, "text/plain", "1")
        used = coding if size > 1000 else None
        assert headers.get("content-encoding") == used
        if used:
            assert len(body) < size / 10
            assert decompress(body, used, size) == b"x" * size
        else:
            assert body == b"x" * size
