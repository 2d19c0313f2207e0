"""A running application's addresses, and a client for it."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from typing import Any

from raysys.errors import RaysysError
from raysys.serve._application import with_action


@dataclass(frozen=True)
class Endpoint:
    """A running application.

    Attributes:
        name: Name of the application, and its model name in the Open Inference Protocol; an
            action's model name is `<name>/<action>`.
        version: Version that receives the requests.
        base_url: URL of the gateway; `tritonclient.http` takes it without the scheme.
        route: Path of requests; an action's path is `<route>/<action>`.
        grpc_address: gRPC address of the Open Inference Protocol, if enabled.
        actions: Action names, if the application was deployed with several graphs.
    """

    name: str
    version: int
    base_url: str
    route: str
    grpc_address: str | None = None
    actions: tuple[str, ...] = ()

    def __repr__(self) -> str:
        actions = f", actions={list(self.actions)}" if self.actions else ""
        grpc = f", grpc={self.grpc_address}" if self.grpc_address else ""
        return f"Endpoint({self.name} v{self.version} at {self.url}{actions}{grpc})"

    @property
    def url(self) -> str:
        """URL of requests; an action's URL is `<url>/<action>`."""
        return self.base_url + self.route

    @property
    def docs_url(self) -> str:
        """URL of the OpenAPI page."""
        return f"{self.url}/docs"

    def predict(
        self, request: dict[str, Any], *,
        action: str = "", api_key: str | None = None, timeout_s: float = 30.0,
    ) -> dict[str, Any]:  # fmt: skip
        """Post one request, values of the graph's inputs, and return its response.

        An action is given if the application has several, an API key if it requires one.

        Raises:
            RaysysError: Unknown action.
            urllib.error.HTTPError: A status other than 200.
        """
        headers = {"Content-Type": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        url = self._action_url(action)
        call = urllib.request.Request(url, json.dumps(request).encode(), headers)
        with urllib.request.urlopen(call, timeout=timeout_s) as reply:
            return json.load(reply)

    def curl(self, request: dict[str, Any], *, action: str = "") -> str:
        """The equivalent curl command."""
        header = "Content-Type: application/json"
        return f"curl -s {self._action_url(action)} -H '{header}' -d '{json.dumps(request)}'"

    def _action_url(self, action: str) -> str:
        if action not in (self.actions or ("",)):
            remedy = f"choose from {list(self.actions)}" if self.actions else "leave it out"
            raise RaysysError(f"application {self.name!r} has no action {action!r}: {remedy}")
        return with_action(self.url, action)
