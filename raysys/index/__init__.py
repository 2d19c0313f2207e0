"""Nearest-neighbour search: an HNSW index on actors that can be changed, filtered and restored."""

from raysys.index._filter import GRAMMAR as FILTER_GRAMMAR
from raysys.index._index import Snapshot, VectorIndex
from raysys.index._local import LocalIndex
from raysys.index._tune import Tuned
from raysys.index._types import Found, Metric, Settings, rows

__all__ = [
    "FILTER_GRAMMAR",
    "Found",
    "LocalIndex",
    "Metric",
    "Settings",
    "Snapshot",
    "Tuned",
    "VectorIndex",
    "rows",
]
