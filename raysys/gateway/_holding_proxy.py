"""The holding proxy: requests wait here while an application has no available replica.

It also sends HAProxy's refusals of requests with a long body, once it has read that: a client that
is cut off while it sends does not read its response.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from raysys.gateway._haproxy_config import READY
from raysys.gateway._wire import APP_HEADER, MAX_BODY_HEADER, REFUSAL_HEADER, TIMEOUT_HEADER
from raysys.imports import lazy_import

aiohttp, web = lazy_import("aiohttp"), lazy_import("aiohttp.web")

_POLL_S = 0.05
_MAX_WAITING = 2048
_CONNECT_S, _GRACE_S = 1.0, 0.5
_BODY_MAX_BYTES = 1 << 30
# For all bodies beyond a short one's bytes; each has to arrive within a time.
_HELD_MAX_BYTES, _SHORT_BYTES, _RECEIVE_S = 256 << 20, 64 << 10, 30.0
_DRAIN_BYTES, _DRAIN_S = 64 << 20, 10.0
# Of one connection; aiohttp sets its own.
_OF_CONNECTION = ("content-length", "transfer-encoding", "connection")


class HoldingProxy:
    """HAProxy's fallback server; forwards requests as soon as a replica is available."""

    def __init__(
        self, live: Callable[[str], list[tuple[str, int]]], deadline_s: Callable[[str], float],
        is_ready: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Prepare with an application's replicas, its timeout, and whether all have a replica."""
        self._live, self._deadline_s, self._is_ready = live, deadline_s, is_ready
        self._waiting = self._held_bytes = 0

    async def start(self, routes: Iterable[Any] = ()) -> int:
        """Listen on a free port of the loopback interface, and return the port.

        The aiohttp `routes` are answered instead of held.
        """
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, skip_auto_headers=["Accept-Encoding"]
        )
        app = web.Application(middlewares=[web.middleware(_refuse_first)])
        for path in READY.split():
            app.router.add_get(path, self._ready)
        app.add_routes(routes)
        app.router.add_route("*", "/{path:.*}", self._hold)
        # Refusals read the rest of a body themselves.
        self._runner = web.AppRunner(
            app, access_log=None, auto_decompress=False, lingering_time=0.0
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _ready(self, _: Any) -> Any:
        ready = self._is_ready()
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _hold(self, request: Any) -> Any:
        if self._waiting >= _MAX_WAITING:
            return await _unavailable(request)
        self._waiting += 1
        body = bytearray()
        try:
            if refusal := await self._receive(request, body):
                return await _refuse(request, *refusal)
            application = request.headers.get(APP_HEADER, "")
            deadline = time.monotonic() + self._timeout_s(request, application)
            for attempt in itertools.count():
                replicas = self._live(application)
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return await _unavailable(request)
                if replicas:
                    host, port = replicas[attempt % len(replicas)]
                    headers = _passed_on(request.headers) | {TIMEOUT_HEADER: f"{left_s:.3f}"}
                    url = f"http://{host}:{port}{request.path_qs}"
                    response = await self._forward(request.method, url, headers, body, left_s)
                    if response is not None:
                        return response
                await asyncio.sleep(_POLL_S)
        finally:
            self._waiting -= 1
            self._held_bytes -= len(body)

    async def _receive(self, request: Any, body: bytearray) -> tuple[int, str] | None:
        """Read the body, as it was sent; status and text of a refusal, None without one."""
        refusal = None
        header = request.headers.get(MAX_BODY_HEADER, "")
        limit = int(header) if header.isdigit() else _BODY_MAX_BYTES
        try:
            async with asyncio.timeout(_RECEIVE_S):
                while refusal is None and (part := await request.content.readany()):
                    body += part
                    self._held_bytes += len(part)
                    if len(body) > limit:
                        refusal = 413, "the body is too large"
                    elif len(body) > _SHORT_BYTES and self._held_bytes > _HELD_MAX_BYTES:
                        refusal = 503, "no replica is available, and too many bodies wait for one"
        except TimeoutError:
            refusal = 408, "the request did not arrive in time"
        if refusal:
            self._held_bytes -= len(body)
            body.clear()
        return refusal

    def _timeout_s(self, request: Any, application: str) -> float:
        """Remaining time of a request."""
        deadline_s = self._deadline_s(application)
        try:
            requested_s = float(request.headers[TIMEOUT_HEADER])
        except (KeyError, ValueError):
            return deadline_s
        return requested_s if requested_s < deadline_s else deadline_s  # NaN is not less

    async def _forward(
        self, method: str, url: str, headers: Mapping[str, str], body: bytearray, left_s: float
    ) -> Any | None:
        """A replica's response; None if the connection failed."""
        # A replica behind a broken link never responds.
        timeout = aiohttp.ClientTimeout(left_s + _GRACE_S, sock_connect=_CONNECT_S)
        try:
            async with self._session.request(
                method, url, headers=headers, data=body, timeout=timeout
            ) as reply:
                headers = _passed_on(reply.headers)
                return web.Response(status=reply.status, body=await reply.read(), headers=headers)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None


async def _refuse_first(request: Any, handler: Callable[[Any], Any]) -> Any:
    """Send HAProxy's refusal, whatever the path is."""
    if refusal := request.headers.get(REFUSAL_HEADER):
        status, _, text = refusal.partition(" ")
        return await _refuse(request, int(status), text)
    return await handler(request)


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _OF_CONNECTION}


async def _unavailable(request: Any) -> Any:
    return await _refuse(request, 503, "no replica is available")


async def _refuse(request: Any, status: int, text: str) -> Any:
    """An error, after the rest of the body, unless that is too late already."""
    if status != 408:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await _drain(request, _DRAIN_BYTES)
    body = {"error": text, "request_id": request.headers.get("x-request-id", "")}
    headers = {"retry-after": "1"} if status == 503 else None
    return web.json_response(body, status=status, headers=headers)


async def _drain(request: Any, limit: int) -> None:
    while limit > 0 and (part := await request.content.readany()):
        limit -= len(part)
