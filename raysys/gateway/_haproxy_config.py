"""HAProxy's configuration: which application a request is for, who may ask it, and how much."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysys.gateway._wire import ALIVE_PATH, APP_HEADER, TOKEN_HEADER, server_metadata

if TYPE_CHECKING:
    from pathlib import Path

# The second is what KubeRay asks a head before it sends requests there.
READY = "/v2/health/ready /-/healthz"
SLOTS = 64
_GRACE_S = 5
# A request is sent again if a replica dies under it, as long as it fits this buffer.
_BUFFER_BYTES = 32768
_ERRORS = {
    400: "the request cannot be read as HTTP",
    408: "the request did not arrive in time",
    500: "the gateway failed",
    502: "the replica gave no answer",
    503: "no replica takes requests now",
    504: "the deadline passed",
}
_OVERLOADED = "more requests wait than can be answered in time: try again later"
_NEVER = (1 << 62) - 1  # Unix time of a key's expiry; HAProxy computes with 64 bits
_TRACEPARENT = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"

Servers = Mapping[str, Mapping[int, tuple[str, int]]]
"""Addresses of replicas by application and slot."""


@dataclass(frozen=True)
class Backend:
    """An application, as the gateway routes to it.

    Attributes:
        name: Of the application.
        version: Whose replicas get its requests.
        route: Path of requests.
        deadline_s: Time for an answer.
        max_body_bytes: Of a request.
        protected: Wants an API key.
        max_requests: That a replica has at a time, until it says what it can do; beyond, the
            gateway itself answers 503.
    """

    name: str
    version: int
    route: str
    deadline_s: float
    max_body_bytes: int
    protected: bool
    max_requests: int = 1024


@dataclass(frozen=True)
class ApiKey:
    """An API key's limits; of the key itself only the SHA-256 is kept.

    Attributes:
        name: Whose it is.
        sha256: Of the key, in hexadecimal.
        rate_per_s: Requests a second at most.
        max_body_bytes: Of a request.
        expires: Unix time in seconds from which it lets nobody in; None never comes.
    """

    name: str
    sha256: str
    rate_per_s: int
    max_body_bytes: int
    expires: int | None = None


@dataclass(frozen=True)
class HAProxySettings:
    """What every configuration of a gateway has.

    Attributes:
        folder: Of control socket and key maps.
        host: Interface of the endpoint.
        port: Of the endpoint.
        holding_port: Where requests wait that no replica can take.
        token: That replicas want to see.
    """

    folder: Path
    host: str
    port: int
    holding_port: int
    token: str


def render(
    front: HAProxySettings, backends: Sequence[Backend], servers: Servers, listen: str | None = None
) -> str:
    """The file's text; `listen` is what HAProxy is to bind instead of host and port."""
    threads = max(1, min(4, (os.cpu_count() or 1) // 4))  # one passes on 20,000 requests/s
    errors = "\n".join(
        f"    http-error status {status} content-type application/json "
        f"string {_quoted(json.dumps({'error': text}))}"
        + (" hdr Retry-After 1" if status == 503 else "")
        for status, text in _ERRORS.items()
    )
    folder = front.folder
    return "\n".join(
        [
            f"""global
    maxconn 8192
    no strict-limits
    nbthread {threads}
    tune.bufsize {_BUFFER_BYTES}
    stats socket {folder}/admin.sock mode 600 level admin expose-fd listeners
    hard-stop-after 60s
defaults
    mode http
    timeout connect 1s
    timeout client 120s
    timeout http-request 15s
    timeout http-keep-alive 120s
    timeout server 60s
    option http-no-delay
    option http-buffer-request
    option idle-close-on-response
    option srvtcpka
    srvtcpka-idle 1s
    srvtcpka-intvl 1s
    srvtcpka-cnt 3
    http-reuse always
    balance leastconn
    retries 5
    option redispatch 1
    retry-on conn-failure empty-response junk-response
{errors}
backend gateway
    server room 127.0.0.1:{front.holding_port}
backend keys
    stick-table type string len 64 size 100k expire 10s store http_req_rate(1s)
backend shed
    stick-table type string len 128 size 10k expire 24h store gpc0
frontend http
    bind {listen or f"{front.host}:{front.port}"}
    http-request del-header x-raysys- -m beg
    acl has_id req.fhdr(x-request-id) -m len 1:128
    http-request set-header x-request-id %[uuid] if !has_id
    http-request set-var(txn.id) req.fhdr(x-request-id)
    http-after-response set-header x-request-id %[var(txn.id)]
    acl has_trace req.hdr(traceparent) -m reg {_TRACEPARENT}
    http-request set-var(txn.trace) uuid,regsub(-,,g)
    http-request set-var(txn.span) uuid,regsub(-,,g),bytes(0,16)
    http-request set-header traceparent 00-%[var(txn.trace)]-%[var(txn.span)]-00 if !has_trace
    {_returns(200, {"live": True}, "{ path /v2/health/live }")}
    {_returns(200, server_metadata(), "{ path /v2 }")}""",
            *_routes(front, backends),
            *(_backend(front, backend, servers.get(backend.name, {})) for backend in backends),
            "",
        ]
    )


def _routes(front: HAProxySettings, backends: Sequence[Backend]) -> list[str]:
    """Which application a request is for, who may ask it, and how much."""
    lines = []
    for backend in sorted(backends, key=lambda backend: -len(backend.route)):
        paths = (backend.route, f"/v2/models/{backend.name}")
        acl = f"for_{backend.name}"
        for path in paths:
            lines += [f"acl {acl} path {path}", f"acl {acl} path_beg {path.rstrip('/')}/"]
        # The model of an action is <name>/<action>, where clients may encode the slash.
        lines.append(f"acl {acl} path_beg /v2/models/{backend.name}%2F")
        first = f"if {acl} !{{ var(txn.app) -m found }}"
        lines += [
            f"http-request set-var(txn.body) int({backend.max_body_bytes}) {first}",
            f"http-request set-var(txn.app) str({backend.name}) {first}",
        ]
    lines += [
        # HAProxy takes all `return` rules before any `use_backend`.
        _returns(
            404,
            {"error": "no application has this path"},
            f"!{{ var(txn.app) -m found }} !{{ path {READY} }}",
        ),
    ]
    guarded = [backend.name for backend in backends if backend.protected]
    if guarded:
        key, folder = "var(txn.key)", front.folder
        lines += [
            f"acl guarded var(txn.app) -m str {' '.join(guarded)}",
            "http-request set-var(txn.secret) req.hdr(x-api-key)",
            'http-request set-var(txn.secret) req.hdr(authorization),regsub("^[Bb]earer +","") '
            "if { req.hdr(authorization) -m found }",
            f"http-request set-var(txn.key) var(txn.secret),sha2(256),hex,lower,map({folder}/"
            "keys.map)",
            _returns(401, {"error": "an API key is wanted: Authorization: Bearer KEY"},
                     f"guarded !{{ {key} -m found }}", 'hdr WWW-Authenticate "Bearer"'),
            # By HAProxy's own clock, so that a key expires whether or not the gateway is well.
            "http-request set-var(txn.now) date if guarded",
            f"http-request set-var(txn.left) {key},map_str_int({folder}/expiries.map,{_NEVER}),"
            "sub(txn.now) if guarded",
            _returns(401, {"error": "the API key has expired"},
                     "guarded { var(txn.left) -m int le 0 }", 'hdr WWW-Authenticate "Bearer"'),
            f"http-request track-sc0 {key} table keys if guarded",
            f"http-request set-var(txn.rate) {key},map_str_int({folder}/rates.map,0) "
            "if guarded",
            "http-request set-var(txn.over) sc_http_req_rate(0,keys),sub(txn.rate) if guarded",
            _returns(429, {"error": "the rate of the API key is exceeded"},
                     "guarded { var(txn.over) -m int gt 0 }", "hdr Retry-After 1"),
            f"http-request set-var(txn.own) {key},map_str_int({folder}/bodies.map,0) if guarded",
            "http-request set-var(txn.less) var(txn.own),sub(txn.body) if guarded",
            "http-request set-var(txn.body) var(txn.own) if guarded { var(txn.less) -m int lt 0 }",
            f"http-request set-header x-raysys-key %[{key}] if guarded",
            "http-request del-header authorization if guarded",
            "http-request del-header x-api-key if guarded",
        ]  # fmt: skip
    lines += [
        _returns(411, {"error": "Content-Length is wanted"},
                 "{ req.hdr(transfer-encoding) -m found } or "
                 "METH_POST !{ req.hdr(content-length) -m found }"),
        "http-request set-var(txn.excess) req.hdr_val(content-length),sub(txn.body)",
        _returns(413, {"error": "the body is too large"},
                 "{ var(txn.excess) -m int gt 0 }"),
        *(
            f"http-request set-var(txn.full) bool(true) if for_{backend.name} "
            f"{{ var(txn.app) -m str {backend.name} }} {{ be_conn_free(app.{backend.name}) eq 0 }}"
            for backend in backends
        ),
        # Counted by application, for the metrics: answered here, it is in no backend's counters.
        "http-request track-sc1 var(txn.app) table shed if { var(txn.full) -m bool }",
        "http-request sc-inc-gpc0(1) if { var(txn.full) -m bool }",
        _returns(503, {"error": _OVERLOADED}, "{ var(txn.full) -m bool }", "hdr Retry-After 1"),
        f"http-request set-header {TOKEN_HEADER.decode()} {front.token}",
        f"http-request set-header {APP_HEADER} %[var(txn.app)]",
        f"use_backend gateway if {{ path {READY} }}",
        "use_backend app.%[var(txn.app)]",
    ]  # fmt: skip
    return [f"    {line}" for line in lines]


def _backend(
    front: HAProxySettings, backend: Backend, servers: Mapping[int, tuple[str, int]]
) -> str:
    lines = [
        f"backend app.{backend.name}",
        f"    timeout server {int(1000 * (backend.deadline_s + _GRACE_S))}ms",
        # Asked by name: another application's replica may have taken a dead one's port.
        "    option httpchk",
        f"    http-check send meth GET uri {ALIVE_PATH} hdr {APP_HEADER} {backend.name}",
        "    timeout check 3s",
        # A dead replica is noticed at its first broken connection; it is back when it says so.
        "    default-server check inter 1s fastinter 100ms downinter 100ms rise 1 fall 3 "
        f"maxconn {backend.max_requests} maxqueue 1 "
        "observe layer4 error-limit 1 on-error mark-down init-addr none",
    ]
    for slot in range(SLOTS):
        host, port = servers.get(slot, ("127.0.0.1", 1))
        state = "" if slot in servers else " disabled"
        # One behind a link that is cut says nothing at all: TCP gives it up, not the deadline.
        lines.append(f"    server r{slot} {host}:{port} tcp-ut 2s{state}")
    lines.append(f"    server room 127.0.0.1:{front.holding_port} backup no-check")
    return "\n".join(lines)


def _returns(status: int, body: Mapping[str, object], condition: str, header: str = "") -> str:
    """A rule that answers at once."""
    return (
        f"http-request return status {status} content-type application/json "
        f"string {_quoted(json.dumps(body))} {header} if {condition}"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "") + "'"
