"""Nearest-neighbour search: HNSW shards held by actors."""

from raysys.index._index import VectorIndex

__all__ = ["VectorIndex"]
