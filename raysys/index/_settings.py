"""Settings of an index, stored with its snapshots."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raysys.settings import Settings

Metric = Literal["cosine", "ip", "l2"]


class IndexSettings(Settings, frozen=True):
    """Settings of an index; the words of the graph are those of hnswlib.

    Attributes:
        metric: Distance, smaller is nearer: "cosine" is 1 - cosine, "ip" 1 - inner product, "l2"
            the squared Euclidean distance. With "cosine" vectors are stored normalized.
        dim: Length of the vectors.
        M: Links per node of the graph.
        ef_construction: Size of the candidate list during insertion.
        ef_search: Size of the candidate list during a query, per shard; set by `tune`.
        seed: Seed of the graph's random levels.
        shards: Number of partitions of the rows.
        replicas: Number of actors per shard.
        max_tombstone_ratio: Share of deleted and replaced rows above which a shard is rebuilt.
        keep_snapshots: Number of snapshots to keep; older ones are removed with their log.
        snapshot_after_bytes: Size of the log since the last snapshot that triggers the next one.
    """

    metric: Metric = "cosine"
    dim: int = Field(ge=1)
    M: int = Field(16, ge=2, le=128)
    ef_construction: int = Field(200, ge=1)
    ef_search: int = Field(64, ge=1)
    seed: int = 0
    shards: int = Field(1, ge=1)
    replicas: int = Field(1, ge=1)
    max_tombstone_ratio: float = Field(0.25, gt=0, le=1)
    keep_snapshots: int = Field(2, ge=1)
    snapshot_after_bytes: int = Field(256 << 20, ge=1)
