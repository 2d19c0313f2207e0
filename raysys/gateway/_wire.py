"""Names, headers and paths shared by the gateway and the replicas."""

from __future__ import annotations

import importlib.metadata
from typing import Any

GATEWAY_NAME = "raysys-gateway"
TOKEN_HEADER = b"x-raysys-token"
APP_HEADER = "x-raysys-app"
# Set by HAProxy: a body's limit where its size is not known yet, and a refusal to send after it.
MAX_BODY_HEADER = "x-raysys-max-body"
REFUSAL_HEADER = "x-raysys-refusal"
TIMEOUT_HEADER = "x-request-timeout-seconds"
ALIVE_PATH = "/-/alive"
INDEX_PATH, STATISTICS_PATH = "/v2/repository/index", "/v2/models/stats"
JSON_LENGTH_HEADER = "Inference-Header-Content-Length"


def server_metadata() -> dict[str, Any]:
    """The Open Inference Protocol's description of this server, for `GET /v2`."""
    return {
        "name": "raysys",
        "version": importlib.metadata.version("raysys"),
        "extensions": ["binary_tensor_data", "model_configuration", "statistics"],
    }
