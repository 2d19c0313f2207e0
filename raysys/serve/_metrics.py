"""What a replica reports of its work, as `raysys_serve_*` in Ray's metrics."""

from __future__ import annotations

from typing import Any


class Metrics:
    """The metrics of one graph of an application in this process."""

    def __init__(self, application: str, action: str) -> None:
        """Start them.

        Args:
            application: Whose graph it is.
            action: That it answers; "" if the application has only this graph.
        """
        from ray.util import metrics

        tags = {"application": application, "action": action}

        def histogram(name: str, text: str, bounds: list[float], *keys: str) -> Any:
            made = metrics.Histogram(name, text, bounds, tag_keys=(*tags, *keys))
            made.set_default_tags(tags)
            return made

        milliseconds = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 2000.0]
        self._node_ms = histogram(
            "raysys_serve_node_latency_ms", "Time of one node over a batch", milliseconds, "node"
        )
        self._batch_ms = histogram(
            "raysys_serve_batch_latency_ms", "Time of the graph over a batch", milliseconds
        )
        self._batch_rows = histogram(
            "raysys_serve_batch_size", "Rows of a batch",
            [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0],
        )  # fmt: skip
        self._queue_rows = metrics.Gauge(
            "raysys_serve_queue_size", "Rows that wait in a replica", tag_keys=tuple(tags)
        )
        self._queue_rows.set_default_tags(tags)
        self._tags: dict[str, dict[str, str]] = {}

    def node(self, name: str, seconds: float) -> None:
        """Note a node's run over a batch."""
        tags = self._tags.setdefault(name, {"node": name})
        self._node_ms.observe(max(1e-6, 1000 * seconds), tags)

    def batch(self, rows: int, seconds: float) -> None:
        """Note a batch."""
        self._batch_rows.observe(rows)
        self._batch_ms.observe(max(1e-6, 1000 * seconds))

    def queue(self, rows: int) -> None:
        """Note how many rows wait."""
        self._queue_rows.set(rows)
