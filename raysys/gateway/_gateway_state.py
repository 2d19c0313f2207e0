"""State of the gateway: announced replicas, and what survives its process."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from raysys.gateway._haproxy_config import Backend
from raysys.ray_internals import key_value

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
        return cls(**state, backends=backends)

    @staticmethod
    def delete() -> None:
        """Delete the saved state."""
        key_value.delete(_KEY)
