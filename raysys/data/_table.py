"""The hand-off between stages: references to Arrow blocks, never a pickled table."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa
    from ray import ObjectRef

    from raysys.storage import Storage


@dataclass(frozen=True)
class BlockMeta:
    """What the driver knows of a block: everything but its rows."""

    rows: int
    nbytes: int
    digest: str
    schema: pa.Schema


@dataclass(frozen=True)
class Table:
    """A distributed table: Arrow blocks in the object store.

    A Table is small and pickles cheaply: pass it to a task or actor and call `arrow()` there,
    which maps the blocks without copying them. Only `arrow()` and `to_pandas()` bring rows
    into the calling process; all else works in tasks.

    Attributes:
        blocks: References to `pyarrow.Table` values.
        metas: Row count, size, digest and schema of each block.
    """

    blocks: tuple[ObjectRef, ...]
    metas: tuple[BlockMeta, ...]

    # --- made from ---

    @classmethod
    def of(cls, pairs: Sequence[Sequence[ObjectRef]]) -> Table:
        """A Table of what tasks return as (block, meta), see `described`; waits for the metas."""
        import ray

        metas = ray.get([meta for _, meta in pairs])
        return cls(tuple(block for block, _ in pairs), tuple(metas))

    @classmethod
    def load(cls, read: Callable[..., pa.Table], *args: Any, name: str = "load") -> Table:
        """A Table of one block that a task reads, on whatever node it runs."""
        return cls.of([_task(name).remote(read, *args)])

    @classmethod
    def from_modin(cls, frame: Any, name: str = "from_modin") -> Table:
        """A Table of a Modin frame's row partitions, converted where they are."""
        from modin.distributed.dataframe.pandas import unwrap_partitions

        task = _task(name)
        return cls.of([task.remote(_from_pandas, p) for p in unwrap_partitions(frame, axis=0)])

    @classmethod
    def from_arrow(cls, table: pa.Table, rows_a_block: int = 1_000_000) -> Table:
        """A Table of rows that this process holds; for small ones, and tests."""
        import ray

        starts = range(0, max(1, len(table)), rows_a_block)
        made = [described(table.slice(start, rows_a_block)) for start in starts]
        return cls(tuple(ray.put(block) for block, _ in made), tuple(meta for _, meta in made))

    # --- seen as ---

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(meta.rows for meta in self.metas)

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks' buffers."""
        return sum(meta.nbytes for meta in self.metas)

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, of all blocks: one without a value in a column knows no type."""
        import pyarrow as pa

        schemas = [meta.schema for meta in self.metas]
        return pa.unify_schemas(schemas, promote_options="permissive")

    @property
    def fingerprint(self) -> str:
        """A digest of the columns, and of the rows as they lie in the blocks."""
        joined = "".join(meta.digest for meta in self.metas)
        return hashlib.blake2b(joined.encode(), digest_size=16).hexdigest()

    def arrow(self) -> pa.Table:
        """All rows in this process, mapped from the object store."""
        import pyarrow as pa
        import ray

        return pa.concat_tables(ray.get(list(self.blocks)), promote_options="permissive")

    def to_pandas(self) -> Any:
        """All rows as a pandas frame in this process."""
        return self.arrow().to_pandas()

    def modin(self) -> Any:
        """A Modin frame whose row partitions are made from the blocks, in tasks."""
        import pandas as pd
        from modin.distributed.dataframe.pandas import from_partitions

        use_ray_engine()
        names = self.schema.names
        # Told what the blocks' metas know, Modin does not fetch row labels to the driver.
        return from_partitions(
            self.pandas_blocks(),
            axis=0,
            index=pd.RangeIndex(self.rows),
            columns=pd.Index(names),
            row_lengths=[meta.rows for meta in self.metas],
            column_widths=[len(names)],
        )

    def to_ray_dataset(self) -> Any:
        """A `ray.data.Dataset` over the same blocks."""
        import ray

        return ray.data.from_arrow_refs(list(self.blocks))

    def pandas_blocks(self) -> list[ObjectRef]:
        """References to the blocks as pandas frames, made in tasks."""
        import ray

        task = ray.remote(_to_pandas).options(name="to_pandas")
        return [task.remote(block) for block in self.blocks]

    # --- changed by ---

    def map_blocks(
        self, function: Callable[..., pa.Table], *args: Any, name: str | None = None
    ) -> Table:
        """Apply `function(block, *args)` to each block, in one task a block.

        Args:
            function: Takes and returns a `pyarrow.Table`.
            args: Further arguments. Tables among them travel as references; an ObjectRef
                arrives as its value.
            name: The tasks' name in the dashboard; the function's by default.
        """
        task = _task(name or str(getattr(function, "__name__", "map_blocks")))
        return Table.of([task.remote(_call, block, function, *args) for block in self.blocks])

    def gather(
        self, function: Callable[..., Any], *args: Any, name: str | None = None
    ) -> list[Any]:
        """What `function(block, *args)` gives for each block: small values, in this process.

        The way to statistics: partial ones in one task a block, merged by the caller.
        """
        import ray

        task = ray.remote(_call).options(name=name or getattr(function, "__name__", "gather"))
        return ray.get([task.remote(block, function, *args) for block in self.blocks])

    def split_blocks(
        self, function: Callable[..., tuple[pa.Table, pa.Table]], *args: Any, name: str
    ) -> tuple[Table, Table]:
        """Like `map_blocks`, for a function that deals the rows out to two Tables."""
        task = _task(name, tables=2)
        made = [task.remote(_call, block, function, *args) for block in self.blocks]
        return Table.of([four[:2] for four in made]), Table.of([four[2:] for four in made])

    def with_row_number(self, column: str) -> Table:
        """Add a column that counts the rows from 0, over all blocks."""
        task, first, made = _task("with_row_number"), 0, []
        for block, meta in zip(self.blocks, self.metas, strict=True):
            made.append(task.remote(_call, block, _number_rows, column, first))
            first += meta.rows
        return Table.of(made)

    def select(self, columns: Sequence[str]) -> Table:
        """Only these columns."""
        return self.map_blocks(_select, list(columns), name="select")

    def means(self) -> dict[str, float]:
        """The mean of each column, from sums made in tasks; NaN for one without a value."""
        import ray

        task = ray.remote(_sums).options(name="means")
        parts = ray.get([task.remote(block) for block in self.blocks])
        means = {}
        for name in self.schema.names:
            total, values = (sum(part[name][n] for part in parts) for n in (0, 1))
            means[name] = total / (values or float("nan"))
        return means

    def write_parquet(self, storage: Storage, path: str) -> None:
        """Write a folder of one Parquet file, in a task."""
        import ray

        ray.get(ray.remote(_write_parquet).options(name="write").remote(self, storage, path))

    def partition_by(self, column: str, blocks: int) -> Table:
        """Bring all rows with equal values of `column` into one block; row order is kept."""
        import ray

        split = ray.remote(_split_by_hash).options(name="partition_by", num_returns=blocks)
        parts = [split.remote(block, column, blocks) for block in self.blocks]
        if blocks == 1:
            parts = [[part] for part in parts]
        task = _task("partition_by")
        return Table.of(
            [task.remote(_concat, *[part[number] for part in parts]) for number in range(blocks)]
        )


def _task(name: str, tables: int = 1) -> Any:
    """A task that returns (block, meta) for each table that its function makes."""
    import ray

    return ray.remote(_with_meta).options(name=name, num_returns=2 * tables)


def _with_meta(function: Callable[..., Any], *args: Any) -> tuple[Any, ...]:
    made = function(*args)
    results: list[Any] = []
    for table in made if isinstance(made, tuple) else (made,):
        results += described(table)
    return tuple(results)


def described(table: pa.Table) -> tuple[pa.Table, BlockMeta]:
    """A block and what the driver knows of it: what a task gives for `Table.of`."""
    block = table.combine_chunks()
    digest = hashlib.blake2b(block.schema.remove_metadata().serialize(), digest_size=16)
    for batch in block.to_batches():
        digest.update(batch.serialize())
    return block, BlockMeta(len(block), block.nbytes, digest.hexdigest(), block.schema)


def _call(block: pa.Table, function: Callable[..., Any], *args: Any) -> Any:
    return function(block, *args)


def _select(block: pa.Table, columns: list[str]) -> pa.Table:
    return block.select(columns)


def _sums(block: pa.Table) -> dict[str, tuple[float, int]]:
    """Of each column, the sum and the number of the values that are there."""
    import pyarrow.compute as pc

    return {
        name: (pc.sum(block[name]).as_py() or 0.0, pc.count(block[name]).as_py())
        for name in block.column_names
    }


def _number_rows(block: pa.Table, column: str, first: int) -> pa.Table:
    import numpy as np

    return block.append_column(column, [np.arange(first, first + len(block))])


def _from_pandas(frame: Any) -> pa.Table:
    import pyarrow as pa

    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"a column holds values of more than one type ({error}): convert it before the "
            "frame becomes a Table"
        ) from error


def _to_pandas(block: pa.Table) -> Any:
    return block.to_pandas()


def _split_by_hash(block: pa.Table, column: str, parts: int) -> Any:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    keys = block[column]
    if pa.types.is_integer(keys.type):  # pandas would make floats of those with a missing value
        keys = keys.fill_null(0).cast(pa.int64(), safe=False)
    keys = pd.util.hash_array(keys.to_pandas().to_numpy()) % parts
    pieces = [block.take(np.flatnonzero(keys == part)) for part in range(parts)]
    return pieces[0] if parts == 1 else pieces


def _concat(*pieces: pa.Table) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables(pieces, promote_options="permissive")


def _write_parquet(table: Table, storage: Storage, path: str) -> None:
    import pyarrow.parquet as pq

    with storage.new_dir(path) as folder:
        pq.write_table(table.arrow(), folder / "part-0.parquet")


@functools.cache
def use_ray_engine() -> None:
    """Point Modin at the connected cluster, once a process."""
    import modin.config
    import ray

    modin.config.Engine.put("ray")
    # Modin cuts a frame into as many partitions as it believes that there are CPUs.
    modin.config.NPartitions.put(max(2, int(ray.cluster_resources().get("CPU", 2)) // 2))
