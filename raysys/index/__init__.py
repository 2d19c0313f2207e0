"""Nearest-neighbour search: an HNSW index on actors that can be changed, filtered and restored."""

from raysys.index._filter import GRAMMAR as FILTER_GRAMMAR
from raysys.index._local_index import LocalIndex
from raysys.index._recall_tuning import Tuned
from raysys.index._types import Found, Metric, Settings, rows
from raysys.index._vector_index import Snapshot, VectorIndex

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
