import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from raysys.gateway import _holding_proxy
from raysys.gateway._holding_proxy import HoldingProxy
from tests.serve.asynchronous import in_loop

Address = tuple[str, int]


class Proxy:
    """A waiting proxy, the replicas that it knows, and a client."""

    def __init__(self, client: aiohttp.ClientSession) -> None:
        self.replicas: dict[str, list[Address]] = {}
        self.ready, self.port, self.looks = False, 0, 0
        self.deadline_s = 30.0
        self.looked = asyncio.Event()
        self._client = client

    def live(self, application: str) -> list[Address]:
        self.looks += 1
        self.looked.set()
        return self.replicas.get(application, [])

    async def ask(
        self, path: str = "/a", body: bytes = b"{}", app: str = "a", method: str = "POST", **h: str
    ) -> tuple[int, Any, dict[str, str]]:
        headers = {"x-raysys-app": app, **{name.replace("_", "-"): v for name, v in h.items()}}
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self._client.request(method, url, data=body, headers=headers) as reply:
            given = {name.lower(): value for name, value in reply.headers.items()}
            return reply.status, await reply.json(), given


@asynccontextmanager
async def open_proxy() -> AsyncIterator[Proxy]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        proxy = Proxy(client)
        waiting = HoldingProxy(proxy.live, lambda _: proxy.deadline_s, lambda: proxy.ready)
        proxy.port = await waiting.start()
        yield proxy
        await waiting._session.close()
        await waiting._runner.cleanup()


@asynccontextmanager
async def replica(status: int = 200, dies: int = 0) -> AsyncIterator[tuple[Address, list[Any]]]:
    """Echoes; breaks off its first answers. Its address, and what it was asked."""
    asked: list[Any] = []

    async def echo(request: web.Request) -> web.Response:
        asked.append((request.method, request.path_qs, await request.read()))
        if len(asked) <= dies:
            assert request.transport
            request.transport.abort()
        headers = {name.lower(): value for name, value in request.headers.items()}
        return web.json_response(headers, status=status, headers={"x-mine": "kept"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0], asked
    await runner.cleanup()


def nobody() -> Address:
    """Where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host, port = taken.getsockname()
    return host, port


@in_loop
async def test_a_request_is_held_until_a_replica_appears_and_gets_its_answer() -> None:
    async with open_proxy() as proxy, replica(status=201) as (address, asked):
        answer = asyncio.create_task(proxy.ask("/a/b?x=1&y=%20", b"\x00body", x_request_id="mine"))
        await proxy.looked.wait()
        assert not answer.done()
        assert asked == []
        proxy.replicas["a"] = [address]
        status, headers, given = await answer
    assert asked == [("POST", "/a/b?x=1&y=%20", b"\x00body")]
    assert (status, given["x-mine"]) == (201, "kept")
    assert headers["x-request-id"] == "mine"
    assert headers["x-raysys-app"] == "a"


@in_loop
async def test_requests_wait_for_their_own_application() -> None:
    async with open_proxy() as proxy, replica() as (one, to_a), replica() as (other, to_b):
        proxy.replicas["b"] = [other]
        waiting = asyncio.create_task(proxy.ask("/a", app="a"))
        await proxy.looked.wait()
        await proxy.ask("/b", app="b", method="GET", body=b"")
        assert not waiting.done()
        proxy.replicas["a"] = [one]
        await waiting
    assert [path for _, path, _ in to_a] == ["/a"]
    assert to_b == [("GET", "/b", b"")]


@in_loop
async def test_many_requests_wait_at_once_and_each_is_answered_once() -> None:
    async with open_proxy() as proxy, replica() as (address, asked):
        bodies = [f"{number}".encode() for number in range(200)]
        answers = [asyncio.create_task(proxy.ask(body=body)) for body in bodies]
        while proxy.looks < len(bodies):
            proxy.looked.clear()
            await proxy.looked.wait()
        proxy.replicas["a"] = [address]
        assert {status for status, *_ in await asyncio.gather(*answers)} == {200}
    assert sorted(body for *_, body in asked) == sorted(bodies)


@pytest.mark.parametrize("patience", ["0", "-1", "0.05"])
@in_loop
async def test_a_request_gives_up_when_its_time_has_passed(patience: str) -> None:
    async with open_proxy() as proxy:
        how = {"x_request_timeout_seconds": patience, "x_request_id": "mine"}
        status, body, headers = await proxy.ask(**how)
    assert (status, body["error"]) == (503, "no replica is available")
    assert body["request_id"] == "mine"
    assert headers["retry-after"] == "1"
    assert proxy.looks >= 1


@pytest.mark.parametrize("patience", [None, "soon", "nan", "1e9"])
@in_loop
async def test_without_a_time_of_its_own_a_request_gives_up_after_the_proxys(
    patience: str | None,
) -> None:
    async with open_proxy() as proxy:
        proxy.deadline_s = 0.01
        how = {} if patience is None else {"x_request_timeout_seconds": patience}
        assert (await proxy.ask(**how))[0] == 503


@in_loop
async def test_a_full_proxy_refuses_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_holding_proxy, "_MAX_WAITING", 1)
    async with open_proxy() as proxy, replica() as (address, _):
        first = asyncio.create_task(proxy.ask())
        await proxy.looked.wait()
        assert (await proxy.ask())[0] == 503
        proxy.replicas["a"] = [address]
        assert (await first)[0] == 200
        assert (await proxy.ask())[0] == 200


@asynccontextmanager
async def unfinished(port: int, sent: int) -> AsyncIterator[asyncio.StreamReader]:
    """A connection that sends a part of its body and then nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n" + b"x" * sent)
    yield reader
    writer.close()


@in_loop
async def test_a_body_has_to_arrive_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_holding_proxy, "_RECEIVE_S", 0.05)
    async with open_proxy() as proxy, unfinished(proxy.port, 10) as reader:
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    assert proxy.looks == 0


@in_loop
async def test_bodies_of_many_bytes_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_holding_proxy, "_HELD_MAX_BYTES", 200_000)
    async with open_proxy() as proxy, replica() as (address, _):
        proxy.replicas["a"] = [address]
        async with unfinished(proxy.port, 150_000):
            while (await proxy.ask(body=b"x" * 100_000))[0] == 200:  # until the first is read
                await asyncio.sleep(0.01)
            assert (await proxy.ask(body=b"x" * 10_000))[0] == 200
        while (await proxy.ask(body=b"x" * 100_000))[0] == 503:
            await asyncio.sleep(0.01)


@in_loop
async def test_a_replica_that_breaks_off_or_is_gone_is_asked_again_or_another() -> None:
    async with open_proxy() as proxy, replica(dies=2) as (address, asked):
        proxy.replicas["a"] = [nobody(), address]
        assert (await proxy.ask(body=b"precious"))[0] == 200
    assert [body for *_, body in asked] == [b"precious"] * 3


@in_loop
async def test_what_a_replica_refuses_is_not_asked_again() -> None:
    async with open_proxy() as proxy, replica(status=503) as (address, asked):
        proxy.replicas["a"] = [address]
        status, _, given = await proxy.ask()
    assert (status, given["x-mine"], len(asked)) == (503, "kept", 1)


@in_loop
async def test_the_proxy_says_whether_every_application_has_a_replica() -> None:
    async with open_proxy() as proxy:
        for ready, expected in ((False, 503), (True, 200)):
            proxy.ready = ready
            answer = await proxy.ask("/v2/health/ready", b"", method="GET")
            assert answer[:2] == (expected, {"ready": ready})
    assert proxy.looks == 0


@in_loop
async def test_the_proxy_is_on_the_loopback_interface_only() -> None:
    async with open_proxy() as proxy:
        waiting = HoldingProxy(proxy.live, lambda name: 30.0, lambda: True)
        await waiting.start()
        assert {host for host, _ in waiting._runner.addresses} == {"127.0.0.1"}
        await waiting._session.close()
        await waiting._runner.cleanup()
