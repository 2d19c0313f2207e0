"""What the actors of an index report, as `raysys_index_*`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysys.telemetry import counter, gauge, histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEYS = ("index", "shard", "replica")


class ReplicaMetrics:
    """The metrics of one replica."""

    def __init__(self, index: str, shard: int, replica: int) -> None:
        self._tags = {"index": index, "shard": str(shard), "replica": str(replica)}
        texts = {
            "rows": "Living rows",
            "pending": "Rows that have not entered the graph yet",
            "tombstones": "Deleted rows in the graph",
            "version": "Of the last batch of changes",
        }
        self._gauges = {
            name: gauge(f"raysys_index_{name}", text, _KEYS) for name, text in texts.items()
        }
        self._lag = gauge("raysys_index_lag", "Batches of changes that it has not applied", _KEYS)
        self._seconds = histogram(
            "raysys_index_query_seconds", "Time of a batch of queries in a shard", _KEYS
        )
        self._queries = counter("raysys_index_queries_total", "Query vectors", _KEYS)

    def query(self, rows: int, seconds: float) -> None:
        """Note a batch of queries."""
        self._seconds.observe(seconds, self._tags)
        self._queries.inc(rows, self._tags)

    def state(self, counts: Mapping[str, int]) -> None:
        """Note how the shard stands."""
        for name, one in self._gauges.items():
            one.set(counts[name], self._tags)

    def lag(self, versions: int) -> None:
        """Note how far the shard is behind the writer."""
        self._lag.set(max(0, versions), self._tags)


class WriterMetrics:
    """The metrics of an index's writer."""

    def __init__(self, index: str) -> None:
        keys = ("index", "shard")
        self._index = index
        self._there = gauge("raysys_index_replicas", "Replicas that answer", keys)
        self._wanted = gauge("raysys_index_replicas_wanted", "Replicas that there should be", keys)
        self._changes = counter("raysys_index_changes_total", "Batches of changes", ("index",))

    def replicas(self, shard: int, there: int, wanted: int) -> None:
        """Note which replicas of a shard are there."""
        tags = {"index": self._index, "shard": str(shard)}
        self._there.set(there, tags)
        self._wanted.set(wanted, tags)

    def change(self) -> None:
        """Note a batch of changes that is safe and visible."""
        self._changes.inc(1, {"index": self._index})
