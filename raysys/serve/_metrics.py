"""Metrics of replicas, `raysys_serve_*`: one observation per batch.

Requests are counted by the gateway, see `GatewayMetrics`.
"""

from __future__ import annotations

from collections.abc import Sequence

from raysys.serve._statistics import ModelStatistics
from raysys.telemetry import metrics


class Metrics:
    """The metrics of one graph of an application in this process.

    Attributes:
        statistics: Counts for clients of the Open Inference Protocol.
    """

    def __init__(self, application: str, action: str) -> None:
        self._tags = {"application": application, "action": action}
        self._nodes: dict[str, dict[str, str]] = {}
        self._refused = 0
        self.statistics = ModelStatistics()

    def node(self, name: str, seconds: float) -> None:
        """Record a node's run over a batch."""
        tags = self._nodes.get(name)
        if tags is None:
            tags = self._nodes[name] = {**self._tags, "node": name}
        metrics.SERVE_NODE_SECONDS.observe(seconds, tags)

    def batch(self, rows: int, seconds: float, waits_s: Sequence[float]) -> None:
        """Record a batch, and the waiting times of its requests, the oldest first."""
        self.statistics.batch(rows, seconds, waits_s)
        metrics.SERVE_BATCH_ROWS.observe(rows, self._tags)
        metrics.SERVE_BATCH_SECONDS.observe(seconds, self._tags)
        metrics.SERVE_LATENCY_SECONDS.observe(waits_s[0] + seconds, self._tags)

    def queue(self, rows: int, refused: int) -> None:
        """Record the queued rows, and the requests refused so far."""
        metrics.SERVE_QUEUE_ROWS.set(rows, self._tags)
        if refused > self._refused:
            tags = {"application": self._tags["application"], "by": "replica"}
            metrics.SERVE_SHED.inc(refused - self._refused, tags)
            self._refused = refused
