"""What replicas and gateway report of their work, as `raysys_serve_*`.

Of requests the gateway tells, which asks HAProxy once a second: counting them costs no request
anything. A replica notes one value of each kind for a batch.
"""

from __future__ import annotations

from raysys.gateway import shed_counter
from raysys.telemetry import gauge, histogram

_KEYS = ("application", "action")
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class Metrics:
    """The metrics of one graph of an application in this process."""

    def __init__(self, application: str, action: str) -> None:
        """Start them.

        Args:
            application: Whose graph it is.
            action: That it answers; "" if the application has only this graph.
        """
        self._tags = {"application": application, "action": action}
        self._nodes: dict[str, dict[str, str]] = {}
        self._node_s = histogram(
            "raysys_serve_node_seconds", "Time of one node over a batch", (*_KEYS, "node")
        )
        self._batch_s = histogram(
            "raysys_serve_batch_seconds", "Time of the graph over a batch", _KEYS
        )
        self._latency_s = histogram(
            "raysys_serve_latency_seconds",
            "From arrival in a replica to the answer, of each batch's oldest request",
            _KEYS,
        )
        self._rows = histogram(
            "raysys_serve_batch_rows", "Rows of a batch", _KEYS, boundaries=_ROWS
        )
        self._queue = gauge("raysys_serve_queue_rows", "Rows that wait in a replica", _KEYS)
        self._shed = shed_counter()
        self._refused = 0

    def node(self, name: str, seconds: float) -> None:
        """Note a node's run over a batch."""
        tags = self._nodes.get(name)
        if tags is None:
            tags = self._nodes[name] = {**self._tags, "node": name}
        self._node_s.observe(seconds, tags)

    def batch(self, rows: int, seconds: float, waited_s: float) -> None:
        """Note a batch, and how long its oldest request had waited."""
        self._rows.observe(rows, self._tags)
        self._batch_s.observe(seconds, self._tags)
        self._latency_s.observe(waited_s + seconds, self._tags)

    def queue(self, rows: int, refused: int) -> None:
        """Note how many rows wait, and how many requests were refused so far."""
        self._queue.set(rows, self._tags)
        if refused > self._refused:
            tags = {"application": self._tags["application"], "by": "replica"}
            self._shed.inc(refused - self._refused, tags)
            self._refused = refused
