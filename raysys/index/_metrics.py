"""What the actors of an index report, as `raysys_index_*` in Ray's metrics."""

from __future__ import annotations

from collections.abc import Mapping

_KEYS = ("index", "shard", "replica")


class Metrics:
    """The metrics of one replica."""

    def __init__(self, index: str, shard: int, replica: int) -> None:
        from ray.util import metrics

        tags = {"index": index, "shard": str(shard), "replica": str(replica)}
        texts = {
            "rows": "Living rows",
            "pending": "Rows that have not entered the graph yet",
            "tombstones": "Deleted rows in the graph",
            "version": "Of the last batch of changes",
        }
        self._gauges = {
            name: metrics.Gauge(f"raysys_index_{name}", text, tag_keys=_KEYS)
            for name, text in texts.items()
        }
        self._query_ms = metrics.Histogram(
            "raysys_index_query_latency_ms", "Time of a batch of queries in a shard",
            [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 500.0], tag_keys=_KEYS,
        )  # fmt: skip
        self._queries = metrics.Counter("raysys_index_queries", "Query vectors", tag_keys=_KEYS)
        for metric in (*self._gauges.values(), self._query_ms, self._queries):
            metric.set_default_tags(tags)

    def query(self, rows: int, seconds: float) -> None:
        """Note a batch of queries."""
        self._query_ms.observe(max(1e-6, 1000 * seconds))
        if rows:
            self._queries.inc(rows)

    def state(self, counts: Mapping[str, int]) -> None:
        """Note how the shard stands."""
        for name, gauge in self._gauges.items():
            gauge.set(counts[name])
