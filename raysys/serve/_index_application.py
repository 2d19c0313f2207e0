"""A vector index as a graph node, and as an application."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, create_model

from raysys.arguments import checked
from raysys.errors import GraphError
from raysys.index import FILTER_GRAMMAR, MAX_FILTER_CHARACTERS, VectorIndex, vector_table
from raysys.serve._graph import Graph
from raysys.serve._nodes import LazyObject

_LARGEST_K = 1000
# Twice this, for a request queued behind another, is below the default deadline.
_WRITE_S = 4.5


class IndexSearch:
    """Nearest neighbours as a node: `LazyObject(IndexSearch, "films", k=10)`.

    Each replica keeps a copy of an index of one shard, so that a search needs no remote call; a
    write is visible there shortly after it was acknowledged. Other indexes are queried through
    their actors.
    """

    def __init__(self, name: str, k: int, *, ef: int | None = None, fused: bool = True) -> None:
        """Connect to a running index.

        Args:
            name: Name of the index.
            k: Number of neighbors.
            ef: Number of candidates; the index's tuned value by default.
            fused: Copy an index of one shard into this process.
        """
        index = VectorIndex.connect(name)
        is_local = fused and index.settings.shards == 1
        self._index, self._k, self._ef = index.local() if is_local else index, k, ef

    def __call__(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids `(n, k)` int64 and distances `(n, k)` float32 of vectors `(n, dim)` float32.

        Nearest first; padded with -1 and infinity where the index has fewer than k rows.
        """
        result = self._index.query(vectors, self._k, ef_search=self._ef)
        return result.ids, result.distances

    def filtered(self, vectors: np.ndarray, filters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same among the rows that satisfy each vector's filter, `(n,)` of str."""
        result = self._index.query(vectors, self._k, ef_search=self._ef, filters=list(filters))
        return result.ids, result.distances


class SearchResponse(BaseModel):
    """Nearest rows, nearest first."""

    ids: list[int]
    distances: list[float]
    attributes: list[dict[str, Any]] = Field(description="of each row, if requested")


class FilterResponse(BaseModel):
    """Rows that satisfy a filter, by ascending id."""

    ids: list[int]


class WriteResponse(BaseModel):
    """Index version from which every search sees the write."""

    version: int


@checked
def index_graphs(index: VectorIndex, *, read_only: bool = False) -> dict[str, Graph]:
    """The actions of an application over an index, for `deploy`.

    `deploy("films", index_graphs(index))` serves `POST /films/search`, `/films/filter`,
    `/films/upsert` and `/films/delete`, documented in `/films/docs`. A JSON write is one row, and
    queued writes become one batch of the index; an Arrow stream writes many rows, all of them at
    the version of the answer or none, up to `Batching.max_write_rows`. After a 504 or a 503 that
    says that the change may be applied, send the same again: a write that is repeated changes
    nothing more.

    Args:
        index: A running index.
        read_only: Leave out `upsert` and `delete`, for example without API keys.

    Raises:
        GraphError: An attribute's type has no JSON equivalent.
    """
    dim = index.settings.dim
    vector: Any = (list[float], Field(min_length=dim, max_length=dim))
    description = f"filter expression, or empty: {FILTER_GRAMMAR}"
    text: Any = (str, Field("", max_length=MAX_FILTER_CHARACTERS, description=description))
    reader, name = LazyObject(_IndexReader, index.name), index.name
    search = create_model(
        "SearchRequest", vector=vector, k=(int, Field(10, ge=1, le=_LARGEST_K)), filter=text,
        with_attributes=(bool, Field(False, description="return the rows' attributes")),
    )  # fmt: skip
    limit: Any = (int, Field(100, ge=1, le=100_000))
    graphs = {
        "search": _graph(search, reader.search, SearchResponse),
        "filter": _graph(
            create_model("FilterRequest", filter=text, limit=limit), reader.filter, FilterResponse
        ),
    }
    if not read_only:
        fields: Any = {field.name: (_json_type(field), ...) for field in index.schema}
        upsert = create_model("UpsertRequest", id=(int, ...), vector=vector, **fields)
        graphs["upsert"] = _graph(upsert, _Upsert(name, tuple(fields)), WriteResponse, writes=True)
        delete = create_model("DeleteRequest", id=(int, ...))
        graphs["delete"] = _graph(delete, LazyObject(_Delete, name), WriteResponse, writes=True)
    return graphs


def _graph(
    request: type[BaseModel], node: Any, response: type[BaseModel], *, writes: bool = False
) -> Graph:
    return Graph(
        inputs=request, nodes={"answer": node}, output="answer", response=response, writes=writes
    )


def _json_type(field: pa.Field) -> Any:
    """The type of an attribute in a request model."""
    kind = field.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return list[_json_type(kind.value_field)]  # type: ignore[misc]
    if pa.types.is_boolean(kind):
        return bool
    if pa.types.is_integer(kind):
        return int
    if pa.types.is_floating(kind):
        return float
    if pa.types.is_string(kind) or pa.types.is_temporal(kind):
        return str
    raise GraphError(
        f"attribute {field.name!r} is {kind}, which has no JSON equivalent: use numbers, booleans, "
        "strings, dates, or lists of them, or read_only=True"
    )


class _IndexReader:
    """Reads an index, a batch of requests at a time."""

    def __init__(self, name: str) -> None:
        self._index = VectorIndex.connect(name)

    def search(
        self, vector: np.ndarray, k: np.ndarray, filter: np.ndarray, with_attributes: np.ndarray
    ) -> list[dict[str, Any]]:
        filters = [text or None for text in filter] if any(filter) else None
        result = self._index.query(vector, max(1, int(k.max())), filters=filters)
        nearest = [ids[:limit] for ids, limit in zip(result.ids, k, strict=True)]
        nearest = [ids[ids >= 0] if (ids < 0).any() else ids for ids in nearest]
        attributes: dict[int, dict[str, Any]] = {}
        if with_attributes.any():
            requested = np.concatenate([nearest[row] for row in np.flatnonzero(with_attributes)])
            table = self._index.get(np.unique(requested)).drop_columns("vector")
            attributes = {row.pop("id"): row for row in table.to_pylist()}
        rows = zip(nearest, result.distances, with_attributes, strict=True)
        return [
            {
                "ids": ids,
                "distances": distances[: len(ids)],
                # A row may have been deleted since the search.
                "attributes": [attributes.get(id, {}) for id in ids.tolist()] if asked else [],
            }
            for ids, distances, asked in rows
        ]

    def filter(self, filter: np.ndarray, limit: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"ids": self._index.matching(text or None, max(1, int(maximum)))}
            for text, maximum in zip(filter, limit, strict=True)
        ]


class _Delete:
    def __init__(self, name: str) -> None:
        self._index = VectorIndex.connect(name)

    def __call__(self, id: np.ndarray) -> list[dict[str, int]]:
        version = self._index.delete(id, timeout_s=_WRITE_S)
        return [{"version": version}] * len(id)


class _Upsert:
    """An upsert node; its parameters are the columns of the index."""

    def __init__(self, name: str, attributes: tuple[str, ...]) -> None:
        self._name, self._attributes = name, attributes
        self._index: VectorIndex | None = None
        names = ("id", "vector", *attributes)
        plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
        # Graphs connect nodes by the names of their parameters.
        self.__signature__ = inspect.Signature([inspect.Parameter(name, plain) for name in names])

    def __repr__(self) -> str:
        return f"upsert into {self._name} {self._attributes}"

    def __call__(self, id: np.ndarray, vector: np.ndarray, *columns: Any) -> list[dict[str, int]]:
        if self._index is None:
            self._index = VectorIndex.connect(self._name)
        # The last of a batch's writes to the same row wins.
        _, last = np.unique(id[::-1], return_index=True)
        latest = len(id) - 1 - last
        attributes = {
            name: pa.array([column[row] for row in latest.tolist()])
            for name, column in zip(self._attributes, columns, strict=True)
        }
        changed = vector_table(id[latest], vector[latest], attributes)
        version = self._index.upsert(changed, timeout_s=_WRITE_S)
        return [{"version": version}] * len(id)
