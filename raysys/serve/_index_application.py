"""An index in a graph, and an application over one."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, create_model

from raysys.errors import GraphError
from raysys.index import FILTER_GRAMMAR, VectorIndex, rows
from raysys.serve._graph import Graph
from raysys.serve._nodes import Lazy

_LARGEST_K = 1000
# Twice, for a request that waits behind another, is less than the usual deadline.
_WRITE_S = 4.5


class IndexSearch:
    """Nearest neighbours as a node: `Lazy(IndexSearch, "films", k=10)`.

    An index of one shard is held by each replica, so that a search makes no hop; a change is
    seen there a moment after it was acknowledged. Others are asked through their actors.
    """

    def __init__(self, name: str, k: int, *, ef: int | None = None, fused: bool = True) -> None:
        """Connect to a running index.

        Args:
            name: Of the index.
            k: Neighbours of each vector.
            ef: Candidates looked at; what the index was tuned to by default.
            fused: Hold an index of one shard in this process.
        """
        index = VectorIndex.connect(name)
        is_local = fused and index.settings.shards == 1
        self._index, self._k, self._ef = index.local() if is_local else index, k, ef

    def __call__(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids `(n, k)` int64 and distances `(n, k)` float32 of vectors `(n, dim)` float32.

        Nearest first; padded with -1 and infinity where the index has fewer than k rows.
        """
        found = self._index.query(vectors, self._k, ef=self._ef)
        return found.ids, found.distances

    def filtered(self, vectors: np.ndarray, filters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same among the rows that satisfy each vector's predicate, `(n,)` of str."""
        found = self._index.query(vectors, self._k, ef=self._ef, filters=list(filters))
        return found.ids, found.distances


class Neighbours(BaseModel):
    """The nearest rows, nearest first."""

    ids: list[int]
    distances: list[float]
    attributes: list[dict[str, Any]] = Field(description="of each row, if asked for")


class Matching(BaseModel):
    """Rows that satisfy a filter, by ascending id."""

    ids: list[int]


class Changed(BaseModel):
    """The version from which on every search sees the change."""

    version: int


def index_graphs(index: VectorIndex, *, read_only: bool = False) -> dict[str, Graph]:
    """The actions of an application over an index, for `deploy`.

    `deploy("films", index_graphs(index))` serves `POST /films/search`, `/films/filter`,
    `/films/upsert` and `/films/delete`, with their forms in `/films/docs`. A request to change
    is one row; those that wait together become one batch of the index. Many rows at once come
    as Arrow streams.

    Args:
        index: A running index.
        read_only: Leave out `upsert` and `delete`, say for an application without API keys.

    Raises:
        GraphError: An attribute is of a type that JSON requests have no form for.
    """
    dim = index.settings.dim
    vector: Any = (list[float], Field(min_length=dim, max_length=dim))
    text: Any = (str, Field("", description=f"rows that satisfy it, or empty: {FILTER_GRAMMAR}"))
    reads, name = Lazy(_Reads, index.name), index.name
    graphs = {
        "search": _graph(
            create_model(
                "Search",
                vector=vector,
                k=(int, Field(10, ge=1, le=_LARGEST_K)),
                filter=text,
                with_attributes=(bool, Field(False, description="give the rows' attributes too")),
            ),
            reads.search,
            Neighbours,
        ),
        "filter": _graph(
            create_model("Filter", filter=text, limit=(int, Field(100, ge=1, le=100_000))),
            reads.filter,
            Matching,
        ),
    }
    if not read_only:
        fields: Any = {field.name: (_json_type(field), ...) for field in index.schema}
        upsert = create_model("Upsert", id=(int, ...), vector=vector, **fields)
        graphs["upsert"] = _graph(upsert, _Upsert(name, tuple(fields)), Changed, writes=True)
        delete = create_model("Delete", id=(int, ...))
        graphs["delete"] = _graph(delete, Lazy(_Delete, name), Changed, writes=True)
    return graphs


def _graph(
    request: type[BaseModel], node: Any, response: type[BaseModel], *, writes: bool = False
) -> Graph:
    return Graph(
        inputs=request, nodes={"answer": node}, output="answer", response=response, writes=writes
    )


def _json_type(field: pa.Field) -> Any:
    """The type of an attribute in a request's model."""
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
        f"attribute {field.name!r} is {kind}, which requests have no form for: use numbers, "
        "booleans, strings, dates, or lists of them, or read_only=True"
    )


class _Reads:
    """What asks an index, a batch of requests at a time."""

    def __init__(self, name: str) -> None:
        self._index = VectorIndex.connect(name)

    def search(
        self, vector: np.ndarray, k: np.ndarray, filter: np.ndarray, with_attributes: np.ndarray
    ) -> list[dict[str, Any]]:
        filters = [text or None for text in filter] if any(filter) else None
        found = self._index.query(vector, max(1, int(k.max())), filters=filters)
        kept = [row[:wanted] for row, wanted in zip(found.ids, k, strict=True)]
        kept = [row[row >= 0] if (row < 0).any() else row for row in kept]
        attributes: dict[int, dict[str, Any]] = {}
        if with_attributes.any():
            wanted = np.concatenate([kept[row] for row in np.flatnonzero(with_attributes)])
            rows = self._index.get(np.unique(wanted)).drop_columns("vector").to_pylist()
            attributes = {row.pop("id"): row for row in rows}
        return [
            {
                "ids": ids,
                "distances": distances[: len(ids)],
                # A row may have been deleted since it was found.
                "attributes": [attributes.get(one, {}) for one in ids.tolist()] if asked else [],
            }
            for ids, distances, asked in zip(kept, found.distances, with_attributes, strict=True)
        ]

    def filter(self, filter: np.ndarray, limit: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"ids": self._index.matching(text or None, max(1, int(most)))}
            for text, most in zip(filter, limit, strict=True)
        ]


class _Delete:
    def __init__(self, name: str) -> None:
        self._index = VectorIndex.connect(name)

    def __call__(self, id: np.ndarray) -> list[dict[str, int]]:
        version = self._index.delete(id, timeout_s=_WRITE_S)
        return [{"version": version}] * len(id)


class _Upsert:
    """A node whose parameters are the columns of an index."""

    def __init__(self, name: str, attributes: tuple[str, ...]) -> None:
        self._name, self._attributes = name, attributes
        self._index: VectorIndex | None = None
        names = ("id", "vector", *attributes)
        plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
        # Graphs join nodes by the names of their parameters.
        self.__signature__ = inspect.Signature([inspect.Parameter(one, plain) for one in names])

    def __repr__(self) -> str:
        return f"upsert into {self._name} {self._attributes}"

    def __call__(self, id: np.ndarray, vector: np.ndarray, *columns: Any) -> list[dict[str, int]]:
        if self._index is None:
            self._index = VectorIndex.connect(self._name)
        # Of requests that wait together and name the same row, the last counts.
        _, last = np.unique(id[::-1], return_index=True)
        kept = len(id) - 1 - last
        attributes = {
            name: pa.array([column[row] for row in kept.tolist()])
            for name, column in zip(self._attributes, columns, strict=True)
        }
        changed = rows(id[kept], vector[kept], attributes)
        version = self._index.upsert(changed, timeout_s=_WRITE_S)
        return [{"version": version}] * len(id)
