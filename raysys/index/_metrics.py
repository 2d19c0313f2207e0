"""What the actors of an index report, as `raysys_index_*`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysys.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping


class ReplicaMetrics:
    """The metrics of one replica."""

    def __init__(self, index: str, shard: int, replica: int) -> None:
        self._tags = {"index": index, "shard": str(shard), "replica": str(replica)}

    def query(self, rows: int, seconds: float) -> None:
        """Note a batch of queries."""
        metrics.INDEX_QUERY_SECONDS.observe(seconds, self._tags)
        metrics.INDEX_QUERIES.inc(rows, self._tags)

    def state(self, counts: Mapping[str, int]) -> None:
        """Note how the shard stands."""
        metrics.INDEX_ROWS.set(counts["rows"], self._tags)
        metrics.INDEX_PENDING.set(counts["pending"], self._tags)
        metrics.INDEX_TOMBSTONES.set(counts["tombstones"], self._tags)
        metrics.INDEX_VERSION.set(counts["version"], self._tags)

    def lag(self, versions: int) -> None:
        """Note how far the shard is behind the writer."""
        metrics.INDEX_LAG.set(max(0, versions), self._tags)


class WriterMetrics:
    """The metrics of an index's writer."""

    def __init__(self, index: str) -> None:
        self._index = index

    def replicas(self, shard: int, there: int, wanted: int) -> None:
        """Note which replicas of a shard are there."""
        tags = {"index": self._index, "shard": str(shard)}
        metrics.INDEX_REPLICAS.set(there, tags)
        metrics.INDEX_REPLICAS_WANTED.set(wanted, tags)

    def change(self) -> None:
        """Note a batch of changes that is safe and visible."""
        metrics.INDEX_CHANGES.inc(1, {"index": self._index})
