"""Groups of `deploy`'s options: the gateway, and the HTTP requests of an application."""

from __future__ import annotations

from dataclasses import dataclass, field

from raysys.storage import Storage


@dataclass(frozen=True)
class GatewayOptions:
    """Options of the gateway; all but `storage` matter only to the call that starts it.

    Attributes:
        host: Interface to listen on.
        port: HTTP port.
        grpc_port: gRPC port of the Open Inference Protocol; None disables gRPC.
        storage: Storage of the API keys and the audit log; the default root by default.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    storage: Storage = field(default_factory=Storage)


@dataclass(frozen=True)
class HTTPOptions:
    """Options of an application's HTTP requests.

    Attributes:
        max_body_bytes: Maximum size of a request body; 413 beyond.
        cache_ttl_s: Lifetime of the cached response to a JSON body; 0 disables the cache. Graphs
            that write are not cached.
    """

    max_body_bytes: int = 16 << 20
    cache_ttl_s: float = 0.0
