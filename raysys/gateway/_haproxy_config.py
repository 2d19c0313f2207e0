"""HAProxy's configuration, rendered from the template `haproxy.cfg.j2`."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
_REQUEST_TIMEOUT_S = 15
_ERRORS = {
    400: "the request cannot be read as HTTP",
    408: "the request did not arrive in time",
    500: "the gateway failed",
    502: "the replica did not respond",
    503: "no replica is available",
    504: "deadline exceeded",
}
_MAX_EXPIRY = (1 << 62) - 1  # Unix time; HAProxy computes with 64 bits

Servers = Mapping[str, Mapping[int, tuple[str, int]]]
"""Addresses of replicas by application and slot."""


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
    """

    name: str
    sha256: str
    rate_per_s: int
    max_body_bytes: int
    expires: int | None = None


@dataclass(frozen=True)
class HAProxySettings:
    """HAProxy's endpoint, its folder of socket and key maps, and the token of replicas."""

    folder: Path
    host: str
    port: int
    holding_port: int
    token: str


def render(
    settings: HAProxySettings, backends: Sequence[Backend], servers: Servers, listen: str = ""
) -> str:
    """The text of the configuration; `listen` is bound instead of host and port."""
    return _template().render(
        settings=settings, listen=listen or f"{settings.host}:{settings.port}",
        threads=max(1, min(4, (os.cpu_count() or 1) // 4)),
        applications=sorted(backends, key=lambda backend: -len(backend.route)),
        declared=backends, replicas=servers, slots=SLOTS, errors=_ERRORS, max_expiry=_MAX_EXPIRY,
        request_timeout_s=_REQUEST_TIMEOUT_S,
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
