"""Metrics of the gateway, `raysys_serve_*`.

The gateway reads HAProxy's counters once a second, so counting costs requests nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from raysys.telemetry.metrics import SERVE_REQUESTS, SERVE_SHED


class GatewayMetrics:
    """The metrics of the gateway; HAProxy's own counters restart at 0 when it is reloaded."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], int] = {}

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

    def _since(self, key: tuple[str, str], count: int) -> int:
        before = self._before.get(key, 0)
        self._before[key] = count
        return count - before if count >= before else count
