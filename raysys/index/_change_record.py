"""A batch of changes as bytes: what the log keeps and what the replicas are sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raysys.index._types import shard_of, vector_column, with_id

if TYPE_CHECKING:
    from collections.abc import Sequence


_TOKEN = b"token"


@dataclass(frozen=True)
class Batch:
    """Changes that appear together.

    Attributes:
        ids: int64 `(n,)`, of rows that are new or replace what stood under their id.
        vectors: float32 `(n, dim)`.
        attributes: Of the index's schema.
        deleted: int64, ids to delete, none of them among `ids`.
    """

    ids: np.ndarray
    vectors: np.ndarray
    attributes: pa.Table
    deleted: np.ndarray

    def of_shard(self, shard: int, shards: int) -> Batch:
        """The changes that concern a shard."""
        mine = np.flatnonzero(shard_of(self.ids, shards) == shard)
        deleted = self.deleted[shard_of(self.deleted, shards) == shard]
        return Batch(self.ids[mine], self.vectors[mine], self.attributes.take(mine), deleted)


def encode(batch: Batch, token: str) -> bytes:
    """One Arrow IPC stream; a deleted row has no vector.

    Args:
        batch: The changes.
        token: By which a batch that is sent again is known.
    """
    table = with_id(batch.ids, batch.attributes)
    table = table.add_column(1, "vector", vector_column(batch.vectors))
    ended = pa.table({"id": pa.array(batch.deleted)})
    whole = pa.concat_tables([table, ended], promote_options="default")
    whole = whole.replace_schema_metadata({_TOKEN: token.encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    return sink.getvalue().to_pybytes()


def tokens(record: bytes) -> list[str]:
    """The tokens of the batches of a record."""
    return [token for token, _ in _streams(record)]


def decode(record: bytes) -> Batch:
    """The changes of a record: one or more encoded batches behind each other, the last wins."""
    tables = [table for _, table in _streams(record)]
    whole = pa.concat_tables(tables).combine_chunks()
    ids = whole["id"].to_numpy()
    if len(tables) > 1:
        _, last = np.unique(ids[::-1], return_index=True)
        last = np.sort(len(ids) - 1 - last)
        whole, ids = whole.take(last).combine_chunks(), ids[last]
    ended = whole["vector"].is_null().to_numpy()
    kept = whole.filter(~ended) if ended.any() else whole
    column = kept["vector"].combine_chunks()
    dim = column.type.list_size
    if isinstance(column, pa.ChunkedArray):  # of no chunk at all
        vectors = np.empty((0, dim), np.float32)
    else:
        vectors = column.flatten().to_numpy().reshape(-1, dim)
    attributes = kept.drop_columns(["id", "vector"]).replace_schema_metadata(None)
    return Batch(ids[~ended], vectors, attributes, ids[ended])


def _streams(record: bytes) -> Sequence[tuple[str, pa.Table]]:
    source, found = pa.BufferReader(record), []
    while source.tell() < len(record):
        table = pa.ipc.open_stream(source).read_all()
        found.append((table.schema.metadata[_TOKEN].decode(), table))
    return found
