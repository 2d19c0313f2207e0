"""Where requests wait while no replica takes them: during a restart, or between versions."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, Any

from raysys.gateway._haproxy_config import READY
from raysys.gateway._wire import APP_HEADER, TIMEOUT_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LOOK_AGAIN_S = 0.05
_WAITING_MAX = 2048
_CONNECT_S, _GRACE_S = 1.0, 0.5
_BODY_MAX_BYTES = 1 << 30


class HoldingProxy:
    """An HTTP server that HAProxy falls back to; it passes requests on when a replica is there."""

    def __init__(
        self,
        live: Callable[[str], list[tuple[str, int]]],
        deadline_s: Callable[[str], float],
        is_ready: Callable[[], bool],
    ) -> None:
        """Prepare.

        Args:
            live: Addresses of an application's replicas.
            deadline_s: Time for an answer of an application.
            is_ready: Whether every application has one.
        """
        self._live, self._deadline_s, self._is_ready = live, deadline_s, is_ready
        self._waiting = 0

    async def start(self) -> int:
        """Listen on a free port of the loopback interface, which is returned."""
        from aiohttp import ClientSession, TCPConnector, web

        connector = TCPConnector(limit=0)
        self._session = ClientSession(connector=connector, auto_decompress=False)
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
        from aiohttp import web

        ready = self._is_ready()
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _hold(self, request: Any) -> Any:

        if self._waiting >= _WAITING_MAX:
            return _unavailable()
        self._waiting += 1
        try:
            body = await request.read()
            application = request.headers.get(APP_HEADER, "")
            given_up = time.monotonic() + self._patience_s(request, application)
            for attempt in itertools.count():
                replicas = self._live(application)
                left_s = given_up - time.monotonic()
                if left_s <= 0:
                    break
                if replicas:
                    host, port = replicas[attempt % len(replicas)]
                    headers = {**request.headers, TIMEOUT_HEADER: f"{left_s:.3f}"}
                    url = f"http://{host}:{port}{request.path_qs}"
                    answer = await self._ask(request.method, url, headers, body, left_s)
                    if answer is not None:
                        return answer
                await asyncio.sleep(_LOOK_AGAIN_S)
            return _unavailable()
        finally:
            self._waiting -= 1

    def _patience_s(self, request: Any, application: str) -> float:
        """What is left of the deadline when a request comes here."""
        deadline_s = self._deadline_s(application)
        try:
            asked = float(request.headers[TIMEOUT_HEADER])
        except (KeyError, ValueError):
            return deadline_s
        return asked if asked < deadline_s else deadline_s  # not a number is not less either

    async def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, left_s: float
    ) -> Any | None:
        """A replica's answer; None if it broke off."""
        from aiohttp import ClientError, ClientTimeout, web

        # One behind a link that is cut never answers.
        patience = ClientTimeout(left_s + _GRACE_S, sock_connect=_CONNECT_S)
        try:
            async with self._session.request(
                method, url, headers=headers, data=body, timeout=patience
            ) as reply:
                kept = {
                    name: value
                    for name, value in reply.headers.items()
                    if name.lower() not in ("content-length", "transfer-encoding", "connection")
                }
                return web.Response(status=reply.status, body=await reply.read(), headers=kept)
        except (ClientError, OSError, TimeoutError):
            return None


def _unavailable() -> Any:
    from aiohttp import web

    return web.json_response(
        {"error": "no replica takes requests now"}, status=503, headers={"retry-after": "1"}
    )
