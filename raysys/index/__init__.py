"""Nearest-neighbour search: an HNSW index on actors that can be changed, filtered and restored."""

from raysys.index._filter import GRAMMAR as FILTER_GRAMMAR
from raysys.index._filter_limits import MAX_CHARACTERS as MAX_FILTER_CHARACTERS
from raysys.index._local_index import LocalIndex
from raysys.index._persistence import IndexSnapshot
from raysys.index._query_result import QueryResult
from raysys.index._recall_tuning import RecallTuningResult
from raysys.index._rows import vector_table
from raysys.index._settings import IndexSettings, Metric
from raysys.index._vector_index import VectorIndex

__all__ = [
    "FILTER_GRAMMAR",
    "MAX_FILTER_CHARACTERS",
    "IndexSettings",
    "IndexSnapshot",
    "LocalIndex",
    "Metric",
    "QueryResult",
    "RecallTuningResult",
    "VectorIndex",
    "vector_table",
]
