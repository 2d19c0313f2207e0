"""The HTTP routes of a replica."""

from __future__ import annotations

import asyncio
import functools
import hmac
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from raysys.gateway import ALIVE_PATH, APP_HEADER, TOKEN_HEADER
from raysys.serve.http._compression import compressing, decompress
from raysys.serve.http._request_handler import JSON_TYPE, Read, RequestHandler, fail
from raysys.serve.http._server import HTTPStatusError, body_limit
from raysys.serve.protocols import _openapi, _swagger_ui

if TYPE_CHECKING:
    from raysys.serve._application import Application
    from raysys.serve._batcher import Batcher
    from raysys.serve._metrics import Metrics
    from raysys.serve._outputs import Outputs
    from raysys.serve._statistics import ModelStatistics
    from raysys.serve.http._server import Headers, Respond

Handler = Callable[["Headers", bytes, "Respond"], None]


class Router:
    """Dispatches a replica's requests to the batchers; example outputs give response schemas."""

    def __init__(
        self, application: Application, batchers: Mapping[str, Batcher],
        metrics: Mapping[str, Metrics], examples: Mapping[str, Outputs | None],
        read: Mapping[str, Read] = types.MappingProxyType({}),
    ) -> None:  # fmt: skip
        self._app, self._token = application, application.token.encode()
        self._handlers = {
            action: RequestHandler(
                application, action, batchers[action], examples[action], read.get(action)
            )
            for action in application.graphs
        }
        self._get: dict[str, Callable[[], Any]] = {
            f"{application.route}/healthz": lambda: {"status": "ok"},
            f"{application.route}/openapi.json": self._openapi,
            f"{application.route}/docs": lambda: _swagger_ui.page(application),
        }
        for name in _swagger_ui.ASSETS:
            path = f"{application.route}/docs/{name}"
            self._get[path] = functools.partial(_swagger_ui.asset, name)
        self._post: dict[str, tuple[Handler, ModelStatistics]] = {}
        for action, handler in self._handlers.items():
            statistics = metrics[action].statistics
            self._post[application.path(action)] = handler.predict, statistics
            model = f"/v2/models/{application.model(action)}"
            for path in (model, f"{model}/versions/{application.version}"):
                self._get[path] = handler.metadata
                self._get[f"{path}/ready"] = lambda: {"ready": True}
                self._get[f"{path}/config"] = handler.config
                self._post[f"{path}/infer"] = handler.infer, statistics

    def handle(
        self, method: str, path: str, headers: Headers, body: bytes, respond: Respond
    ) -> None:
        """Respond to one request, at once or when its batch has run."""
        if b"accept-encoding" in headers:
            respond = compressing(respond, headers[b"accept-encoding"].decode("latin-1"))
        try:
            if path == ALIVE_PATH:
                ours = headers.get(APP_HEADER.encode()) == self._app.name.encode()
                respond(200 if ours else 404, JSON_TYPE, b"{}")
                return
            if not hmac.compare_digest(headers.get(TOKEN_HEADER, b""), self._token):
                text = "replicas accept requests of the gateway only: use the endpoint's URL"
                raise HTTPStatusError(403, text)
            if method != "POST" or path not in self._post:
                respond(*self._describe(method, path))
                return
            handler, statistics = self._post[path]
            respond = statistics.counting(respond)
            if b"content-encoding" in headers:
                self._decompress(handler, headers, body, respond)
            else:
                handler(headers, body, respond)
        except Exception as error:
            fail(error, headers, respond)

    def _decompress(
        self, handler: Handler, headers: Headers, body: bytes, respond: Respond
    ) -> None:
        """Call a handler with the body without its coding, which a thread removes."""

        def decompressed(future: asyncio.Future[bytes]) -> None:
            try:
                handler(headers, future.result(), respond)
            except Exception as error:
                fail(error, headers, respond)

        coding = headers[b"content-encoding"].decode("latin-1")
        limit = body_limit(headers, self._app.max_body_bytes)
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, decompress, body, coding, limit).add_done_callback(decompressed)

    def _describe(self, method: str, path: str) -> tuple[int, str, bytes, Mapping[str, str] | None]:
        """The response to a request that does not run the graph."""
        get = self._get.get(path)
        if get is not None and method in ("GET", "HEAD"):
            content = get()
            if isinstance(content, _swagger_ui.Page):
                return 200, *content, None
            return 200, JSON_TYPE, orjson.dumps(content), None
        if get is None and path not in self._post:
            paths = ", ".join(map(self._app.path, self._handlers))
            raise HTTPStatusError(
                404, f"unknown path {path}: post to {paths}, see {self._app.route}/docs"
            )
        allow = {"allow": "POST, OPTIONS" if get is None else "GET, HEAD, OPTIONS"}
        if method == "OPTIONS":
            return 204, JSON_TYPE, b"", allow
        raise HTTPStatusError(405, f"{method} is not allowed for {path}", allow)

    def _openapi(self) -> dict[str, Any]:
        return _openapi.document(
            self._app,
            {action: handler.request for action, handler in self._handlers.items()},
            {action: handler.example for action, handler in self._handlers.items()},
        )
