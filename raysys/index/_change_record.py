"""Batches of changes and their encoding in the log and between actors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raysys.index._rows import shard_of, vector_matrix, with_id, with_vector

if TYPE_CHECKING:
    from collections.abc import Sequence

_TOKEN = b"token"


@dataclass(frozen=True)
class ChangeBatch:
    """Changes that become visible together."""

    ids: np.ndarray  # int64 `(n,)`, of new and replaced rows
    vectors: np.ndarray  # float32 `(n, dim)`
    attributes: pa.Table  # columns in the index's schema
    deleted: np.ndarray  # int64, ids to delete, disjoint from `ids`

    def of_shard(self, shard: int, shards: int) -> ChangeBatch:
        """The changes of a shard."""
        rows = np.flatnonzero(shard_of(self.ids, shards) == shard)
        deleted = self.deleted[shard_of(self.deleted, shards) == shard]
        return ChangeBatch(self.ids[rows], self.vectors[rows], self.attributes.take(rows), deleted)


def encode(batch: ChangeBatch, token: str) -> bytes:
    """An Arrow IPC stream; a deleted row has a null vector. `token` identifies a resent batch."""
    table = with_vector(with_id(batch.ids, batch.attributes), batch.vectors)
    deleted = pa.table({"id": pa.array(batch.deleted)})
    table = pa.concat_tables([table, deleted], promote_options="default")
    table = table.replace_schema_metadata({_TOKEN: token.encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def tokens(record: bytes) -> list[str]:
    """The tokens of the batches of a record."""
    return [token for token, _ in _streams(record)]


def decode(record: bytes) -> ChangeBatch:
    """The changes of a record: concatenated encoded batches, of which the last change wins."""
    tables = [table for _, table in _streams(record)]
    table = pa.concat_tables(tables).combine_chunks()
    ids = table["id"].to_numpy()
    if len(tables) > 1:
        _, last = np.unique(ids[::-1], return_index=True)
        last = np.sort(len(ids) - 1 - last)
        table, ids = table.take(last).combine_chunks(), ids[last]
    is_deleted = table["vector"].is_null().to_numpy()
    if is_deleted.any():
        table = table.filter(~is_deleted)
    attributes = table.drop_columns(["id", "vector"]).replace_schema_metadata(None)
    vectors = vector_matrix(table["vector"])
    return ChangeBatch(ids[~is_deleted], vectors, attributes, ids[is_deleted])


def _streams(record: bytes) -> Sequence[tuple[str, pa.Table]]:
    source, streams = pa.BufferReader(record), []
    while source.tell() < len(record):
        table = pa.ipc.open_stream(source).read_all()
        streams.append((table.schema.metadata[_TOKEN].decode(), table))
    return streams
