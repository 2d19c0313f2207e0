"""The holding proxy: requests wait here while an application has no available replica."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

from raysys.gateway._haproxy_config import READY
from raysys.gateway._wire import APP_HEADER, TIMEOUT_HEADER
from raysys.imports import lazy_import

aiohttp, web = lazy_import("aiohttp"), lazy_import("aiohttp.web")

_POLL_S = 0.05
_MAX_WAITING = 2048
_CONNECT_S, _GRACE_S = 1.0, 0.5
_BODY_MAX_BYTES = 1 << 30


class HoldingProxy:
    """HAProxy's fallback server; forwards requests as soon as a replica is available."""

    def __init__(
        self, live: Callable[[str], list[tuple[str, int]]], deadline_s: Callable[[str], float],
        is_ready: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Prepare with an application's replicas, its timeout, and whether all have a replica."""
        self._live, self._deadline_s, self._is_ready = live, deadline_s, is_ready
        self._waiting = 0

    async def start(self) -> int:
        """Listen on a free port of the loopback interface, and return the port."""
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        app = web.Application(client_max_size=_BODY_MAX_BYTES)
        for path in READY.split():
            app.router.add_get(path, self._ready)
        app.router.add_route("*", "/{path:.*}", self._hold)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _ready(self, _: Any) -> Any:
        ready = self._is_ready()
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _hold(self, request: Any) -> Any:
        if self._waiting >= _MAX_WAITING:
            return _unavailable()
        self._waiting += 1
        try:
            body = await request.read()
            application = request.headers.get(APP_HEADER, "")
            deadline = time.monotonic() + self._timeout_s(request, application)
            for attempt in itertools.count():
                replicas = self._live(application)
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return _unavailable()
                if replicas:
                    host, port = replicas[attempt % len(replicas)]
                    headers = {**request.headers, TIMEOUT_HEADER: f"{left_s:.3f}"}
                    url = f"http://{host}:{port}{request.path_qs}"
                    response = await self._forward(request.method, url, headers, body, left_s)
                    if response is not None:
                        return response
                await asyncio.sleep(_POLL_S)
        finally:
            self._waiting -= 1

    def _timeout_s(self, request: Any, application: str) -> float:
        """Remaining time of a request."""
        deadline_s = self._deadline_s(application)
        try:
            requested_s = float(request.headers[TIMEOUT_HEADER])
        except (KeyError, ValueError):
            return deadline_s
        return requested_s if requested_s < deadline_s else deadline_s  # NaN is not less

    async def _forward(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, left_s: float
    ) -> Any | None:
        """A replica's response; None if the connection failed."""
        # A replica behind a broken link never responds.
        timeout = aiohttp.ClientTimeout(left_s + _GRACE_S, sock_connect=_CONNECT_S)
        try:
            async with self._session.request(
                method, url, headers=headers, data=body, timeout=timeout
            ) as reply:
                passed_on = {
                    name: value
                    for name, value in reply.headers.items()
                    if name.lower() not in ("content-length", "transfer-encoding", "connection")
                }
                return web.Response(status=reply.status, body=await reply.read(), headers=passed_on)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None


def _unavailable() -> Any:
    return web.json_response(
        {"error": "no replica is available"}, status=503, headers={"retry-after": "1"}
    )
