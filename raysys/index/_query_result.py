"""Arguments and results of a query: checks, padding and the merge of partial results."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from raysys.errors import DataError
from raysys.index._rows import NO_ID, as_matrix, check_vectors

if TYPE_CHECKING:
    from raysys.index._settings import IndexSettings


class QueryResult(NamedTuple):
    """Neighbours of a batch of query vectors.

    Attributes:
        ids: int64 `(n, k)`, nearest first; -1 where fewer than k rows exist or match.
        distances: float32 `(n, k)`, see `IndexSettings.metric`; infinite where the id is -1.
        missing_shards: Shards that did not answer; their rows are not among the ids.
        stale_shards: Shards of which no replica hears from the writer: their last changes may be
            missing.
    """

    ids: np.ndarray
    distances: np.ndarray
    missing_shards: tuple[int, ...] = ()
    stale_shards: tuple[int, ...] = ()

    def __repr__(self) -> str:
        missing = f", missing_shards={self.missing_shards}" if self.missing_shards else ""
        stale = f", stale_shards={self.stale_shards}" if self.stale_shards else ""
        queries, k = self.ids.shape
        return f"QueryResult(queries={queries}, k={k}{missing}{stale})"


def check_queries(vectors: Any, settings: IndexSettings) -> np.ndarray:
    """Query vectors with finite distances, float32 `(n, dim)`, C-contiguous."""
    matrix = as_matrix(vectors)
    check_dimension(matrix, settings)
    check_vectors(matrix, np.arange(len(matrix)), "query", settings.metric)
    return matrix


def check_dimension(matrix: np.ndarray, settings: IndexSettings) -> None:
    """Refuse vectors of another dimension than the index."""
    if (dim := matrix.shape[1]) != settings.dim:
        raise DataError(f"the index has vectors of dimension {settings.dim}; given: {dim}")


def check_query_arguments(
    matrix: np.ndarray, k: int, ef_search: int | None, filters: str | Sequence[str | None] | None
) -> Sequence[str | None] | None:
    """A filter for each vector, or None without filters; refuses arguments that do not fit."""
    if not isinstance(k, (int, np.integer)) or k < 1 or (ef_search is not None and ef_search < 1):
        raise DataError(
            f"k and ef_search must be positive integers; given: k={k!r}, ef_search={ef_search!r}"
        )
    if filters is None:
        return None
    if isinstance(filters, str):
        return [filters] * len(matrix)
    if len(filters) != len(matrix):
        raise DataError(f"{len(filters)} filters for {len(matrix)} vectors: give one per vector")
    if wrong := [text for text in filters if not isinstance(text, (str, NoneType))]:
        raise DataError(f"a filter is a string, or None for all rows; given: {wrong[0]!r}")
    return list(filters)


def padding(rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and distances `(rows, k)` without neighbours."""
    return np.full((rows, k), NO_ID), np.full((rows, k), np.inf, np.float32)


def merge(parts: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of several results, ids and distances `(n, k)`."""
    if len(parts) == 1:
        return parts[0]
    ids, distances = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)
