"""State of the gateway: announced replicas, counted responses, and what survives its process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from raysys.gateway._haproxy_config import Backend
from raysys.ray_internals import key_value
from raysys.telemetry.metrics import (
    GATEWAY_KEY_ADDRESSES,
    GATEWAY_KEY_REQUESTS,
    SERVE_REQUESTS,
    SERVE_SHED,
)

_KEY = b"gateway"


@dataclass(frozen=True)
class Announcement:
    """A ready replica."""

    application: str
    version: int
    replica: str
    host: str
    port: int


@dataclass
class ReplicaState:
    """State of a replica; `slot` is its server in HAProxy, if assigned."""

    announcement: Announcement
    heard: float
    slot: int | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.announcement.host, self.announcement.port


@dataclass
class GatewayState:
    """State that survives the gateway's process."""

    host: str
    port: int
    grpc_port: int | None
    token: str
    max_source_share: float
    folder: str = ""
    backends: dict[str, Backend] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    def save(self) -> None:
        """Write the state to the cluster's key-value store."""
        key_value.put(_KEY, json.dumps(dataclasses.asdict(self)).encode())

    @classmethod
    def restore(cls) -> GatewayState | None:
        """The saved state of a previous gateway."""
        saved = key_value.get(_KEY)
        if not saved:
            return None
        state = json.loads(saved)
        backends = {name: Backend(**backend) for name, backend in state.pop("backends").items()}
        for name, backend in backends.items():  # JSON has no tuples
            origins = tuple(backend.cors_origins)
            backends[name] = dataclasses.replace(backend, cors_origins=origins)
        return cls(**state, backends=backends)

    @staticmethod
    def delete() -> None:
        """Delete the saved state."""
        key_value.delete(_KEY)


class GatewayMetrics:
    """Counts responses from HAProxy's counters, which restart at 0 when it is reloaded.

    The gateway reads them once a second, so counting costs requests nothing.
    """

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], int] = {}
        self._addresses: Mapping[str, int] = {}

    def requests(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Record HAProxy's counters so far, by application and status class."""
        for (application, code), count in counts.items():
            if new := self._since((application, code), count):
                SERVE_REQUESTS.inc(new, {"application": application, "code": code})

    def shed(self, counts: Mapping[str, int]) -> None:
        """Record the requests that the gateway has refused so far, by application."""
        for application, count in counts.items():
            if new := self._since((application, "shed"), count):
                SERVE_SHED.inc(new, {"application": application, "by": "gateway"})

    def keys(self, uses: Mapping[tuple[str, str], int], addresses: Mapping[str, int]) -> None:
        """Record the use of API keys so far, by key and outcome, and their addresses."""
        for (key, outcome), count in uses.items():
            if new := self._since((f"key {key}", outcome), count):
                GATEWAY_KEY_REQUESTS.inc(new, {"key": key, "outcome": outcome})
        for key in {*addresses, *self._addresses}:
            GATEWAY_KEY_ADDRESSES.set(addresses.get(key, 0), {"key": key})
        self._addresses = addresses

    def _since(self, key: tuple[str, str], count: int) -> int:
        before = self._before.get(key, 0)
        self._before[key] = count
        return count - before if count >= before else count
