"""HAProxy's configuration, rendered from the template `haproxy.cfg.j2`."""

from __future__ import annotations

import functools
import json
import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raysys.gateway._wire import (
    ALIVE_PATH,
    APP_HEADER,
    INDEX_PATH,
    MAX_BODY_HEADER,
    REFUSAL_HEADER,
    STATISTICS_PATH,
    TOKEN_HEADER,
    server_metadata,
)
from raysys.imports import lazy_import

jinja2 = lazy_import("jinja2")

# The second is KubeRay's readiness probe of the head.
READY = "/v2/health/ready /-/healthz"
SLOTS = 64
_GRACE_S = 5
# Requests per replica with a body that does not fit the buffer; the replica limits their bytes.
_LONG_REQUESTS = 256
_OTHER_FILES = 512
_ERRORS = {
    400: "the request cannot be read as HTTP, or its body did not arrive in time",
    408: "the request did not arrive in time",
    500: "the gateway failed",
    502: "the replica did not respond",
    503: "no replica is available",
    504: "deadline exceeded",
}
_MAX_EXPIRY = (1 << 62) - 1  # Unix time; HAProxy computes with 64 bits

Servers = Mapping[str, Mapping[int, tuple[str, int]]]
"""Addresses of replicas by application and slot."""


Scope = Literal["read", "serve"]


@dataclass(frozen=True)
class Backend:
    """An application, as the gateway routes to it.

    Attributes:
        version: Version that receives the requests.
        route: Path of requests.
        deadline_s: Request timeout.
        max_body_bytes: Maximum size of a request body.
        protected: Whether requests require an API key.
        max_requests: Maximum number of concurrent requests per replica, until the replica reports
            its capacity; beyond, the gateway responds with 503.
        cors_origins: Origins of web pages that may send requests; "*" for all.
    """

    name: str
    version: int
    route: str
    deadline_s: float
    max_body_bytes: int
    protected: bool
    max_requests: int = 1024
    cors_origins: tuple[str, ...] = ()

    @property
    def server_timeout_ms(self) -> int:
        """Time for a replica's response; longer than the deadline, which replicas enforce."""
        return int(1000 * (self.deadline_s + _GRACE_S))


@dataclass(frozen=True)
class ApiKey:
    """An API key's hash and limits; the key itself is not stored.

    Attributes:
        sha256: SHA-256 of the key, hex.
        rate_per_s: Maximum number of requests per second.
        max_body_bytes: Maximum size of a request body.
        expires: Unix time in seconds of the expiry; None for never.
        scope: `serve` for requests and descriptions of applications, `read` for descriptions alone.
        applications: Names of the applications that it is for; empty for all.
    """

    name: str
    sha256: str
    rate_per_s: int
    max_body_bytes: int
    expires: int | None = None
    scope: Scope = "serve"
    applications: tuple[str, ...] = ()


@dataclass(frozen=True)
class HAProxySettings:
    """HAProxy's endpoint, its folder of socket and key maps, and the token of replicas.

    Attributes:
        max_source_share: Maximum share of the connections that one source address may hold.
        max_connections: Maximum number of connections, if the limit of open files allows it.
        receive_s: Time for a request's head and a short body, and for the next part of a long one.
    """

    folder: Path
    host: str
    port: int
    holding_port: int
    token: str
    max_source_share: float = 0.25
    max_connections: int = 16_384
    receive_s: int = 15

    @property
    def connections(self) -> int:
        """Maximum number of connections; each needs a second one, to a replica."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if files == resource.RLIM_INFINITY:
            return self.max_connections
        return min(self.max_connections, (files - _OTHER_FILES) // 2)


def render(
    settings: HAProxySettings, backends: Sequence[Backend], servers: Servers, listen: str = ""
) -> str:
    """The text of the configuration; `listen` is bound instead of host and port."""
    return _template().render(
        settings=settings, listen=listen or f"{settings.host}:{settings.port}",
        threads=max(1, min(4, (os.cpu_count() or 1) // 4)), connections=settings.connections,
        source_connections=int(settings.max_source_share * settings.connections),
        long_requests=_LONG_REQUESTS,
        applications=sorted(backends, key=lambda backend: -len(backend.route)),
        declared=backends, replicas=servers, slots=SLOTS, errors=_ERRORS, max_expiry=_MAX_EXPIRY,
        server=server_metadata(), ready=READY, alive_path=ALIVE_PATH,
        app_header=APP_HEADER, token_header=TOKEN_HEADER.decode(),
        index_path=INDEX_PATH, statistics_path=STATISTICS_PATH,
        max_body_header=MAX_BODY_HEADER, refusal_header=REFUSAL_HEADER,
    )  # fmt: skip


@functools.cache
def _template() -> Any:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raysys.gateway", "."),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"quoted": _quoted, "error": _error}
    return environment.get_template("haproxy.cfg.j2")


def _quoted(value: Any) -> str:
    """JSON as a quoted argument of HAProxy."""
    return "'" + json.dumps(value).replace("'", "") + "'"


def _error(message: str) -> str:
    """The body of an error response, as a quoted log format of HAProxy."""
    body = _quoted({"error": message, "request_id": "ID"}).replace("%", "%%")
    return body.replace("ID", "%[var(txn.id),json(utf8s)]")
