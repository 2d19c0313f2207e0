"""What a replica answers over HTTP: its routes."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

import orjson

from raysys.gateway import ALIVE_PATH, APP_HEADER, TOKEN_HEADER
from raysys.serve._request_handler import JSON_TYPE, Action, HttpError, fail
from raysys.serve.protocols import _openapi

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raysys.serve._application import Application
    from raysys.serve._batcher import Batcher
    from raysys.serve._http_server import Headers, Respond
    from raysys.serve._outputs import Answers


class HttpApp:
    """The answers of one replica."""

    def __init__(
        self,
        application: Application,
        batchers: Mapping[str, Batcher],
        examples: Mapping[str, Answers | None],
    ) -> None:
        """Prepare the routes.

        Args:
            application: What is served.
            batchers: Answer rows, by action.
            examples: Answers to an example of each action, by which clients are told what to
                expect.
        """
        self._app, self._token = application, application.token.encode()
        self._actions = {
            name: Action(application, name, batchers[name], examples[name])
            for name in application.graphs
        }
        self._get: dict[str, Callable[[], Any]] = {
            f"{application.route}/healthz": lambda: {"status": "ok"},
            f"{application.route}/openapi.json": self._openapi,
        }
        self._post: dict[str, Callable[[Headers, bytes, Respond], None]] = {}
        for name, action in self._actions.items():
            self._post[application.path(name)] = action.predict
            model = f"/v2/models/{application.model(name)}"
            for path in (model, f"{model}/versions/{application.version}"):
                self._get[path] = action.metadata
                self._get[f"{path}/ready"] = lambda: {"ready": True}
                self._post[f"{path}/infer"] = action.infer

    def answer(
        self, method: str, path: str, headers: Headers, body: bytes, respond: Respond
    ) -> None:
        """Answer one request, at once or when its batch has run."""
        try:
            if path == ALIVE_PATH:
                ours = headers.get(APP_HEADER.encode()) == self._app.name.encode()
                respond(200 if ours else 404, JSON_TYPE, b"{}")
                return
            if not hmac.compare_digest(headers.get(TOKEN_HEADER, b""), self._token):
                raise HttpError(403, "replicas answer the gateway only: use the endpoint's URL")
            handle = self._post.get(path)
            if handle is None or method != "POST":
                respond(200, *self._other(method, path))
            else:
                handle(headers, body, respond)
        except Exception as error:
            fail(error, headers, respond)

    def _other(self, method: str, path: str) -> tuple[str, bytes]:
        if path == f"{self._app.route}/docs" and method == "GET":
            return "text/html; charset=utf-8", _openapi.page(self._app)
        make = self._get.get(path)
        if make is None or method != "GET":
            allowed = "POST" if path in self._post else "GET"
            if make is None and path not in self._post:
                paths = ", ".join(map(self._app.path, self._actions))
                raise HttpError(
                    404, f"there is nothing at {path}: post to {paths}, see {self._app.route}/docs"
                )
            raise HttpError(405, f"{method} is not allowed here", {"allow": allowed})
        return JSON_TYPE, orjson.dumps(make())

    def _openapi(self) -> dict[str, Any]:
        return _openapi.document(
            self._app,
            {name: action.request for name, action in self._actions.items()},
            {name: action.example for name, action in self._actions.items()},
        )
