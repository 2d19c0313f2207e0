"""Where a running application answers."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from typing import Any

from raysys.errors import RaysysError
from raysys.serve._application import below


@dataclass(frozen=True)
class Endpoint:
    """A running application.

    Attributes:
        name: Of the application, and of the model in the Open Inference Protocol; an action's
            model is `<name>/<action>`.
        version: That answers.
        base_url: Of the gateway; `tritonclient.http` takes it without its scheme.
        route: Path of requests; those of an action go to `<route>/<action>`.
        grpc_address: Of the Open Inference Protocol over gRPC, if it was asked for.
        actions: Names of the graphs, if the application was deployed with several.
    """

    name: str
    version: int
    base_url: str
    route: str
    grpc_address: str | None = None
    actions: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Where requests are posted; those of an action below it."""
        return self.base_url + self.route

    @property
    def docs_url(self) -> str:
        """The OpenAPI form."""
        return f"{self.url}/docs"

    def ask(
        self,
        request: dict[str, Any],
        *,
        action: str = "",
        key: str | None = None,
        timeout_s: float = 30.0,
    ) -> dict[str, Any]:
        """Post one request and return its answer.

        Args:
            request: Values of the graph's inputs.
            action: Which graph answers, if the application has several.
            key: An API key, if the application wants one.
            timeout_s: Time for the answer.

        Raises:
            RaysysError: The application has no such action.
            HTTPError: Of `urllib.error`: the answer is not 200.
        """
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        call = urllib.request.Request(self._url(action), json.dumps(request).encode(), headers)
        with urllib.request.urlopen(call, timeout=timeout_s) as reply:
            return json.load(reply)

    def curl(self, request: dict[str, Any], *, action: str = "") -> str:
        """The same as a line for the shell."""
        header = "Content-Type: application/json"
        return f"curl -s {self._url(action)} -H '{header}' -d '{json.dumps(request)}'"

    def _url(self, action: str) -> str:
        if action not in (self.actions or ("",)):
            raise RaysysError(
                f"application {self.name!r} has no action {action!r}: "
                + (f"ask one of {list(self.actions)}" if self.actions else "leave it out")
            )
        return below(self.url, action)
