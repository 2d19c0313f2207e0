"""The way in: HAProxy, its supervisor, API keys, live versions of applications, gRPC."""

from raysys.gateway._api_keys import create_key, read_keys, revoke_key
from raysys.gateway._gateway import ANNOUNCE_S, find_gateway, start_gateway
from raysys.gateway._gateway_state import Announcement
from raysys.gateway._haproxy_config import SLOTS, Backend
from raysys.gateway._wire import (
    ALIVE_PATH,
    APP_HEADER,
    JSON_LENGTH_HEADER,
    MAX_BODY_HEADER,
    TIMEOUT_HEADER,
    TOKEN_HEADER,
    server_metadata,
)

__all__ = [
    "ALIVE_PATH",
    "ANNOUNCE_S",
    "APP_HEADER",
    "JSON_LENGTH_HEADER",
    "MAX_BODY_HEADER",
    "SLOTS",
    "TIMEOUT_HEADER",
    "TOKEN_HEADER",
    "Announcement",
    "Backend",
    "create_key",
    "find_gateway",
    "read_keys",
    "revoke_key",
    "server_metadata",
    "start_gateway",
]
