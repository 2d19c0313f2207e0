"""Refusals that clients can read although they are still sending: HAProxy and the holding proxy."""

import asyncio
import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from raysys.gateway._haproxy_config import HAProxySettings
from raysys.gateway._haproxy_process import HAProxy
from raysys.gateway._holding_proxy import HoldingProxy
from raysys.gateway._model_directory import ModelDirectory
from tests.gateway.fronts import TOKEN, app, free_port, key

LONG = 20_000_000  # more than any socket buffer


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a gateway whose applications have no replica."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    holding = HoldingProxy(lambda _: [], lambda _: 0.0, lambda: True)
    models = ModelDirectory(lambda: {"guarded": 1})
    starting = holding.start(models.routes())
    holding_port = asyncio.run_coroutine_threadsafe(starting, loop).result()
    port, folder = free_port(), tmp_path_factory.mktemp("front")
    proxy = HAProxy(HAProxySettings(folder / "0", "127.0.0.1", port, holding_port, TOKEN))
    proxy.apply([app("a"), app("guarded", protected=True)], {}, [key("joe", "rs_joe")])
    yield f"http://127.0.0.1:{port}"
    proxy.stop()
    for closing in (holding._session.close(), holding._runner.cleanup()):
        asyncio.run_coroutine_threadsafe(closing, loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 100_000):
        yield b"x" * 100_000


@pytest.mark.parametrize(
    ("path", "headers", "status", "body"),
    [
        ("/a", {}, 413, b"x" * LONG),
        ("/a", {"transfer-encoding": "chunked"}, 413, chunks),
        ("/nowhere", {}, 404, b"x" * LONG),
        ("/nowhere", {"transfer-encoding": "chunked"}, 404, chunks),
        ("/guarded", {}, 401, b"x" * LONG),
        ("/guarded", {"x-api-key": "rs_joe"}, 413, b"x" * LONG),
        ("/v2", {}, 405, b"x" * LONG),
        ("/v2/repository/index", {}, 401, b" " * 20_000),
        ("/v2/repository/index", {"transfer-encoding": "chunked"}, 401, chunks),
        ("/v2/repository/index", {"x-api-key": "rs_joe"}, 413, b" " * 100_000),
        ("/a", {}, 503, b"x" * 900),
    ],
)
def test_urllib_reads_why_its_request_is_refused(
    url: str, path: str, headers: dict[str, str], status: int, body: Any
) -> None:
    data = body(LONG) if callable(body) else body
    request = urllib.request.Request(url + path, data, {"X-Request-Id": "mine", **headers})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    with refused.value as error:
        answer = json.load(error)
        assert error.code == status
        assert (answer["request_id"], error.headers["x-request-id"]) == ("mine", "mine")
        assert answer["error"]
        assert (error.headers["www-authenticate"] == "Bearer") == (status == 401)
        assert (error.headers["retry-after"] == "1") == (status == 503)
        assert (error.headers["allow"] is not None) == (status == 405)


def test_a_body_without_end_is_not_read_for_ever(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    endless = chunks(100 << 30)
    with pytest.raises(ConnectionError):
        connection.request("POST", "/a", endless, {"transfer-encoding": "chunked"})
    connection.close()
