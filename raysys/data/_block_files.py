"""A Table's blocks as files: the same blocks come back, whatever their types."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysys.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from raysys.storage import Storage

TABLE = "table.pickle"  # schemas and lineage


@dataclass(frozen=True)
class KeptBlock:
    """A block in a file of Arrow's IPC format, read by the task that needs it."""

    storage: Storage
    path: str
    schema: pa.Schema

    def read(
        self,
        columns: Sequence[str] | None = None,
        predicate: pl.Expr | None = None,
    ) -> pa.Table:
        """The rows; a local file is mapped, so that columns left out are not read."""
        if self.storage.is_local:
            try:
                source: Any = pa.memory_map(self.storage.uri(self.path))
            except OSError as error:
                raise _gone(self.storage.uri(self.path)) from error
        else:
            data = self.storage.read_bytes(self.path)
            if data is None:
                raise _gone(self.storage.uri(self.path))
            source = pa.BufferReader(data)
        table = pa.ipc.open_file(source).read_all()
        return table if columns is None else table.select(list(columns))


def write(block: pa.Table, folder: Storage, number: int) -> tuple[str, pa.Schema]:
    """Write a block; a digest of the file, and the schema."""
    block = block.combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, block.schema) as writer:
        writer.write_table(block)
    data = sink.getvalue()
    with folder.new_file(name_of(number)) as local, local.open("wb") as file:
        file.write(data)
    return hashlib.blake2b(data, digest_size=16).hexdigest(), block.schema


def name_of(number: int) -> str:
    """Of a block's file."""
    return f"block-{number:05d}.arrow"


def _gone(uri: str) -> StorageError:
    return StorageError(f"no block of a Table at {uri}: it was removed; make the Table again")
