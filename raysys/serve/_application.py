"""What a replica must know of its application; travels pickled."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysys.serve._batcher import Batching
    from raysys.serve._graph import Graph

TOKEN_HEADER = b"x-raysys-token"
APP_HEADER = "x-raysys-app"
TIMEOUT_HEADER = "x-request-timeout-seconds"
ALIVE_PATH = "/-/alive"
GATEWAY_NAMESPACE = "raysys"
GATEWAY_NAME = "raysys-gateway"


@dataclass(frozen=True)
class Application:
    """A graph and how it is served.

    Attributes:
        name: Of the application, and of the model in the Open Inference Protocol.
        version: Counted by the gateway.
        route: Path of requests.
        graph: What answers them.
        batching: How they are brought together.
        deadline_s: Time for an answer; a request may ask for less.
        max_body_bytes: Of a request.
        cache_s: Lifetime of a cached answer; 0 caches nothing.
        example: A batch that a replica runs before it takes requests.
        protected: Wants an API key.
        token: Shared by gateway and replicas, so that nobody passes by the gateway.
    """

    name: str
    version: int
    route: str
    graph: Graph
    batching: Batching
    deadline_s: float
    max_body_bytes: int
    cache_s: float
    example: Mapping[str, Any] | None
    protected: bool
    token: str


def raise_priority() -> None:
    """Let this process answer before bulk work on its node, if the system permits it.

    Ray starts workers at niceness 15, so all that is not Ray's on the machine goes first.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
