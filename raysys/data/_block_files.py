"""A Table's blocks as files: Arrow's IPC format, which restores any type, and Parquet."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from raysys.data._blocks import run_in_turn, value_task
from raysys.data._lazy_plan import frame_of
from raysys.errors import DataError, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from raysys.data._lineage import Lineage
    from raysys.data._table import Table
    from raysys.storage import Storage

_TABLE = "table.pickle"  # schemas and lineage
_MAX_FOLDERS = 10_000  # of Parquet files


@dataclass(frozen=True)
class StoredBlock:
    """A block in a file of Arrow's IPC format, read by the task that needs it."""

    storage: Storage
    path: str
    schema: pa.Schema

    def read(
        self, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None
    ) -> pa.Table:
        """The rows; a local file is mapped, so that only these columns are read."""
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


def write_table(table: Table, storage: Storage, path: str) -> str:
    """Write a Table's blocks in tasks; a digest of them."""
    task = value_task("write_blocks")
    with storage.staged(path) as folder:
        calls = [(_write, block, folder, number) for number, block in enumerate(table.blocks())]
        written = run_in_turn(task, calls)
        schemas = [schema for _, schema in written]
        sizes = folder.sizes("")
        description = schemas, sizes, table.schema, table.lineage
        folder.write_signed(_TABLE, pickle.dumps(description))
    digests = repr([digest for digest, _ in written])
    return hashlib.blake2b(digests.encode(), digest_size=16).hexdigest()


def stored_rows(sources: Sequence[Any], operations: Sequence[Any]) -> pa.Table | None:
    """All rows of a Table of files to which nothing was done; None of another."""
    stored = [source for source in sources if isinstance(source, StoredBlock)]
    if operations or not stored or len(stored) < len(sources):
        return None
    return pa.concat_tables([source.read() for source in stored], promote_options="permissive")


def read_table(
    storage: Storage, path: str
) -> tuple[list[StoredBlock], pa.Schema, tuple[()], Lineage]:
    """Blocks, schema, an empty plan and lineage: arguments of `Table.from_plan`."""
    data = storage.read_signed(f"{path}/{_TABLE}")
    if data is None:
        raise StorageError(f"no Table at {storage.uri(path)}: `write_blocks` writes one")
    schemas, sizes, schema, lineage = pickle.loads(data)
    present = storage.sizes(path)
    if damaged := [name for name, size in sizes.items() if present.get(name) != size]:
        raise StorageError(
            f"the Table at {storage.uri(path)} is damaged: {len(damaged)} of its {len(sizes)} "
            f"blocks are missing or cut off, such as {damaged[0]}; make it again"
        )
    blocks = [
        StoredBlock(storage, f"{path}/{_file_name(number)}", block_schema)
        for number, block_schema in enumerate(schemas)
    ]
    return blocks, schema, (), lineage


def _write(block: pa.Table, folder: Storage, number: int) -> tuple[str, pa.Schema]:
    """Write a block; a digest of the file, and the schema."""
    block = block.combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, block.schema) as writer:
        writer.write_table(block)
    data = sink.getvalue()
    with folder.new_file(_file_name(number)) as local, local.open("wb") as file:
        file.write(data)
    return hashlib.blake2b(data, digest_size=16).hexdigest(), block.schema


def _file_name(number: int) -> str:
    return f"block-{number:05d}.arrow"


def _gone(uri: str) -> StorageError:
    return StorageError(f"no block of a Table at {uri}: it was removed; make the Table again")


def write_part(block: pa.Table, folder: Storage, number: int, partition_by: Sequence[str]) -> int:
    """Write a block as files of a folder; returns the number of its rows."""
    name = f"part-{number:05d}.parquet"
    block = readable(block)
    if not partition_by:
        with folder.new_file(name) as local:
            pq.write_table(block, local)
        return len(block)
    for values, rows in _by_value(block, partition_by):
        below = "/".join(
            f"{key}={quote(str(value), safe=' ')}"
            for key, value in zip(partition_by, values, strict=True)
        )
        with folder.new_file(f"{below}/{name}") as local:
            pq.write_table(rows, local)
    return len(block)


def readable(block: pa.Table) -> pa.Table:
    """Fixed-size lists with missing values as large lists: Arrow cannot read them otherwise."""
    for number, field in enumerate(block.schema):
        if pa.types.is_fixed_size_list(field.type) and block[field.name].null_count:
            kind = pa.large_list(field.type.value_type)
            block = block.set_column(number, field.name, block[field.name].cast(kind))
    return block


def _by_value(block: pa.Table, columns: Sequence[str]) -> list[tuple[tuple[object, ...], pa.Table]]:
    frame = frame_of(block)
    if any(frame[name].null_count() for name in columns):
        raise DataError(
            f"write_parquet: {list(columns)} contain missing values, which cannot name a "
            "folder: fill them first"
        )
    groups = frame.partition_by(list(columns), maintain_order=True, as_dict=True, include_key=False)
    if len(groups) > _MAX_FOLDERS:
        raise DataError(
            f"write_parquet: {list(columns)} have {len(groups)} values in one block: partition by "
            "columns of few values"
        )
    return [(values, rows.to_arrow()) for values, rows in groups.items()]
