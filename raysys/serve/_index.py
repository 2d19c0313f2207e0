"""An index in a graph, and an application over one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field, create_model

from raysys.index import FILTER_GRAMMAR, VectorIndex, rows
from raysys.serve._graph import Graph
from raysys.serve._lazy import Lazy

if TYPE_CHECKING:
    import pyarrow as pa

_LARGEST_K = 1000
_FILTER = Field(None, max_length=10_000, description=f"a predicate over rows: {FILTER_GRAMMAR}")


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

    def __call__(
        self, vectors: np.ndarray, filters: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids `(n, k)` int64 and distances `(n, k)` float32, nearest first, padded with -1.

        Args:
            vectors: float32 `(n, dim)`.
            filters: A predicate for each or None, `(n,)` of objects.
        """
        texts = None if filters is None else list(filters)
        found = self._index.query(vectors, self._k, ef=self._ef, filters=texts)
        return found.ids, found.distances


def index_graphs(index: VectorIndex, *, read_only: bool = False) -> dict[str, Graph]:
    """The actions of an application over an index, for `deploy`.

    `deploy("films", index_graphs(index))` serves `POST /films/search`, `/films/filter`,
    `/films/upsert` and `/films/delete`, with their forms in `/films/docs`.

    Args:
        index: A running index.
        read_only: Leave out `upsert` and `delete`, say for an application that is not protected.
    """
    dim = index.settings.dim
    attributes = _row_model(index.schema)
    vector: Any = (list[float], Field(min_length=dim, max_length=dim))
    requests: dict[str, type[BaseModel]] = {
        "search": create_model(
            "Search",
            vector=vector,
            k=(int, Field(10, ge=1, le=_LARGEST_K)),
            filter=(str | None, _FILTER),
            with_attributes=(bool, Field(False, description="give the rows' attributes too")),
        ),
        "filter": create_model(
            "Filter", filter=(str | None, _FILTER), limit=(int, Field(100, ge=1, le=10_000))
        ),
        "upsert": create_model(
            "Upsert", rows=(
                list[create_model("Row", id=(int, ...), vector=vector, attributes=(attributes, ...))],  # type: ignore[misc]
                Field(min_length=1, max_length=10_000),
            ),
        ),
        "delete": create_model(
            "Delete", ids=(list[int], Field(min_length=1, max_length=100_000))
        ),
    }  # fmt: skip
    made = Lazy(_IndexActions, index.name)
    nodes = {
        "search": made.search, "filter": made.filter, "upsert": made.upsert, "delete": made.delete
    }  # fmt: skip
    names = ("search", "filter") if read_only else tuple(nodes)
    return {
        name: Graph(inputs=requests[name], nodes={"answer": nodes[name]}, output="answer")
        for name in names
    }
