"""The hand-off between stages: references to Arrow blocks, never a pickled table."""

from __future__ import annotations

import hashlib
import itertools
import pickle
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import ray

from raysys.data import _aggregate, _join, _shuffle
from raysys.data import _block_edits as _rows
from raysys.data import _block_files as _kept
from raysys.data import _conversions as _convert
from raysys.data import _parquet_writer as _write
from raysys.data._blocks import (
    BLOCK_BYTES,
    BlockMeta,
    coordinate,
    described,
    results,
    run_in_turn,
    table_task,
    value_task,
)
from raysys.data._lazy_plan import Step, evaluate, planned_schema
from raysys.data._lineage import Lineage, code_of, plain
from raysys.data._row_hash import block_digest, content_digest, content_of
from raysys.errors import DataError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import polars as pl
    from ray import ObjectRef

    from raysys.storage import Storage

# Up to this size a Table is sent whole to each task that joins with it.
BROADCAST_BYTES = 64 << 20
How = Literal["inner", "left", "semi", "anti", "full"]
_AHEAD = 4  # blocks that `iter_batches` makes before they are asked for


class Table:
    """A distributed table: Arrow blocks in the object store, or the plan of them.

    A Table is small and pickles cheaply: pass it to a task or actor and call `to_arrow()` there,
    which maps the blocks without copying them. Only `to_arrow()`, `to_pandas()` and
    `iter_batches()` bring rows into the calling process; all else works in tasks.

    `select`, `filter`, `with_columns`, `rename` and a join with a small Table only note what to
    do. The next method that needs rows does it in one task a block, and reads no more columns
    and row groups of a file than that takes. `materialize()` keeps the result, and so does
    asking for `blocks`, `metas`, `rows` or `nbytes`; use it before a Table is used twice.

    How rows lie in blocks depends on the data alone, so one node and four give the same Table.
    Columns are worked with by polars' expressions (`pl.col("distance") / pl.col("air_time")`).
    """

    def __init__(
        self,
        blocks: Sequence[ObjectRef],
        metas: Sequence[BlockMeta],
        lineage: Lineage | None = None,
    ) -> None:
        """A Table of blocks that are there.

        Args:
            blocks: References to `pyarrow.Table` values.
            metas: Row count, size and schema of each block.
            lineage: Where it comes from.
        """
        self._sources: tuple[Any, ...] = tuple(blocks)
        self._steps: tuple[Step, ...] = ()
        self._metas: tuple[BlockMeta, ...] | None = tuple(metas)
        self._planned_schema: pa.Schema | None = None  # after the steps
        self.lineage = lineage or Lineage("made by hand")

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (self.blocks(), self.metas(), self.lineage)

    # --- made from ---

    @classmethod
    def from_plan(
        cls, sources: Sequence[Any], schema: pa.Schema, steps: Sequence[Step], lineage: Lineage
    ) -> Table:
        """A Table of blocks or parts of files, and steps that give them this schema."""
        table = cls(sources, (), lineage)
        table._steps, table._metas, table._planned_schema = tuple(steps), None, schema
        return table

    @classmethod
    def from_blocks(
        cls, pairs: Sequence[Sequence[ObjectRef]], lineage: Lineage | None = None
    ) -> Table:
        """A Table of what tasks return as (block, meta), see `described`; waits for the metas."""
        metas = results([meta for _, meta in pairs])
        return cls([block for block, _ in pairs], metas, lineage)

    @classmethod
    def load(cls, read: Callable[..., pa.Table], *args: Any, name: str = "load") -> Table:
        """A Table of one block that a task reads, on whatever node it runs."""
        return cls.from_blocks([table_task(name).remote(read, *args)], _made_by(name, read, args))

    @classmethod
    def from_modin(
        cls, frame: Any, name: str = "from_modin", inputs: Sequence[Table] = ()
    ) -> Table:
        """A Table of a Modin frame's row partitions, converted where they are.

        Args:
            frame: The frame.
            name: The tasks' name in the dashboard.
            inputs: The Tables that the frame was made of, which it does not know: for the lineage.
        """
        from modin.distributed.dataframe.pandas import unwrap_partitions

        task = table_task(name)
        made = [task.remote(_convert.from_pandas, p) for p in unwrap_partitions(frame, axis=0)]
        found = cls.from_blocks(made)
        # What was done to the frame is not known: the content stands for it.
        said = {"content": found.fingerprint()}
        chain = tuple(table.lineage for table in inputs)
        found.lineage = Lineage(name, said, chain, "", len(found), found.fingerprint())
        return found

    @classmethod
    def from_arrow(cls, table: pa.Table, rows_per_block: int = 1_000_000) -> Table:
        """A Table of rows that this process holds; for small ones, and tests."""
        starts = range(0, max(1, len(table)), rows_per_block)
        made = [described(table.slice(start, rows_per_block)) for start in starts]
        return cls(
            [ray.put(block) for block, _ in made],
            [meta for _, meta in made],
            Lineage("from_arrow", {"content": block_digest(table)}),
        )

    @classmethod
    def concat(cls, tables: Sequence[Table]) -> Table:
        """The rows of several Tables after one another; numbers become the widest type."""
        if not tables:
            raise DataError("concat: no Tables are given; give at least one")
        names = tables[0].schema.names
        for number, table in enumerate(tables):
            if sorted(table.schema.names) != sorted(names):
                raise DataError(
                    f"concat: Table {number} has the columns {table.schema.names[:20]}, the first "
                    f"has {names[:20]}: select or rename them so that they are the same"
                )
        ordered = [t if t.schema.names == names else t.select(names) for t in tables]
        _shuffle.common_schema([table.schema for table in ordered], "concat: Table")
        return cls(
            [block for table in ordered for block in table.blocks()],
            [meta for table in ordered for meta in table.metas()],
            Lineage("concat", inputs=tuple(table.lineage for table in tables)),
        )

    # --- seen as ---

    def blocks(self) -> tuple[ObjectRef, ...]:
        """References to `pyarrow.Table` values."""
        return self.materialize()._sources

    def metas(self) -> tuple[BlockMeta, ...]:
        """Row count, size and schema of each block."""
        metas = self.materialize()._metas
        assert metas is not None
        return metas

    def __len__(self) -> int:
        """Number of rows."""
        return sum(meta.rows for meta in self.metas())

    def __bool__(self) -> bool:
        raise TypeError(
            "the truth value of a Table is ambiguous: write `table is not None`, or "
            "`len(table) > 0` to count its rows"
        )

    def nbytes(self) -> int:
        """Bytes of the blocks' buffers."""
        return sum(meta.nbytes for meta in self.metas())

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, of all blocks: one without a value in a column knows no type."""
        if self._metas is None:
            return self._planned_schema
        schemas = [meta.schema for meta in self._metas]
        return pa.unify_schemas(schemas, promote_options="permissive")

    def fingerprint(self) -> str:
        """A digest of the columns and of the rows in their order, however they lie in blocks."""
        if self.lineage.fingerprint is None:
            columns = [f"{field.name}:{_convert.kind_of(field.type)}" for field in self.schema]
            contents = self.gather(content_of, name="fingerprint")
            said = f"{columns} {content_digest(contents)}"
            self.lineage.fingerprint = hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
        return self.lineage.fingerprint

    def to_arrow(self) -> pa.Table:
        """All rows in this process, mapped from the object store."""
        return pa.concat_tables(results(self.blocks()), promote_options="permissive")

    def to_pandas(self) -> Any:
        """All rows as a pandas frame in this process."""
        return self.to_arrow().to_pandas()

    def iter_batches(self, rows: int) -> Iterator[pa.Table]:
        """Rows in order, so many at a time, the last batch with what is left.

        A few blocks are made and fetched ahead; a planned Table is not kept.
        """
        if rows < 1:
            raise DataError(f"iter_batches: rows={rows}; give at least 1")
        none = self.schema.empty_table()
        task = value_task(self._name())
        left: list[pa.Table] = []
        held = 0
        waiting: deque[Any] = deque()
        for number in range(len(self._sources) + _AHEAD):
            if number < len(self._sources):
                source = self._sources[number]
                kept = self._metas is not None
                waiting.append(source if kept else task.remote(evaluate, source, self._steps))
            if number < _AHEAD:
                continue
            left += results([waiting.popleft()])
            held += len(left[-1])
            if held < rows:
                continue
            whole = pa.concat_tables([none, *left], promote_options="permissive")
            for start in range(0, held - held % rows, rows):
                yield whole.slice(start, rows)
            left, held = [whole.slice(held - held % rows)], held % rows
        if held:
            yield pa.concat_tables([none, *left], promote_options="permissive")

    def to_modin(self) -> Any:
        """A Modin frame whose row partitions are made from the blocks, in tasks."""
        return _convert.to_modin(self)

    def to_ray_dataset(self) -> Any:
        """A `ray.data.Dataset` over the same blocks."""
        return ray.data.from_arrow_refs(list(self.blocks()))

    def to_dmatrix(self, *, label: str, group: str | None = None, **options: Any) -> Any:
        """A `RayDMatrix`: each of xgboost-ray's actors maps whole blocks itself.

        Args:
            label: The label's column.
            group: For ranking, the column that says which rows are ranked against each other:
                ascending, each value in one block.
            options: Of RayDMatrix, such as `weight` or `ignore`; columns by name.
        """
        chosen = {"qid": group} if group else {}
        return _convert.to_dmatrix(self, label=label, **chosen, **options)

    def materialize(self) -> Table:
        """Do what is planned and keep the blocks; the Table itself."""
        if self._metas is None:
            task = table_task(self._name())
            made = Table.from_blocks([task.remote(evaluate, s, self._steps) for s in self._sources])
            self._sources, self._metas, self._steps = made._sources, made._metas, ()
            self.lineage.rows = len(self)
        return self

    # --- changed by: planned, done with what comes next ---

    def select(self, columns: Sequence[str]) -> Table:
        """These columns, in this order."""
        names = self.schema.names
        if missing := [name for name in columns if name not in names]:
            raise DataError(f"select: {missing} are no columns; the table has {names[:20]}")
        if not columns or len(set(columns)) < len(columns):
            raise DataError(f"select: give one or more columns, each once; given: {list(columns)}")
        step = Step("select", _rows.select, (list(columns),), columns=tuple(columns))
        return self._then(step, columns=list(columns))

    def rename(self, names: Mapping[str, str]) -> Table:
        """Other names for some columns, old to new."""
        return self._then(Step("rename", _rows.rename, (dict(names),)), names=dict(names))

    def filter(self, predicate: pl.Expr) -> Table:
        """Rows for which a polars expression is true: neither false nor null."""
        step = Step("filter", _rows.filter_rows, (predicate,))
        return self._then(step, predicate=predicate)

    def with_columns(self, **columns: pl.Expr) -> Table:
        """Add or replace columns by polars expressions that need one row at a time.

        An expression over several rows (a mean, a shift) would see its block alone.
        """
        step = Step("with_columns", _rows.with_columns, (columns,))
        return self._then(step, columns=columns)

    def join(
        self,
        other: Table,
        on: str | Sequence[str] | Mapping[str, str],
        how: How = "left",
        *,
        suffix: str = "_right",
    ) -> Table:
        """Rows of two Tables with equal keys, side by side.

        A missing key equals none. Up to 64 MiB the other Table is sent whole to each task and
        rows stay in their order. Larger ones, and `full`, move the rows of both by the keys'
        hash: then rows keep their order within a block only.

        Args:
            other: The right side.
            on: Key columns of both, or left to right.
            how: `inner`; `left` keeps all rows of this; `full` of both; `semi` and `anti` keep
                this one's columns, and rows with or without a partner.
            suffix: For the right side's columns that share a name with the left's.

        Raises:
            DataError: A key is missing on a side, or has another type there.
        """
        if how not in get_args(How):
            raise DataError(f"join: how={how!r}; give one of {list(get_args(How))}")
        keys = _join.keys_of(on, self.schema, other.schema)
        said = {"on": keys, "how": how, "suffix": suffix}
        if how != "full" and other.nbytes() <= BROADCAST_BYTES:
            step = Step("join", _join.join_rows, (keys, how, suffix), (other,))
            return self._then(step, **said)
        self._then(Step("join", _join.join_rows, (keys, how, suffix), (other,)))  # do they fit?
        parts = _parts(self.nbytes() + other.nbytes())
        left, right = [
            _shuffle.by_hash(table.blocks(), (), columns, parts, "join")
            for table, columns in ((self, list(keys)), (other, list(keys.values())))
        ]
        task = table_task("join")
        made = [
            task.remote(
                _join.join_pieces, len(left), keys, how, suffix,
                *[pieces[part] for pieces in (*left, *right)],
            )
            for part in range(parts)
        ]  # fmt: skip
        inputs = (self.lineage, other.lineage)
        return Table.from_blocks(made, Lineage("join", plain(said), inputs))._counted()

    # --- changed by: done at once ---

    def aggregate(self, by: Sequence[str] = (), **aggregates: _aggregate.Of) -> Table:
        """One row for each group, ascending by group (within a block, if there are several).

        Args:
            by: Columns that make a group; one row of all rows without any. A missing value is a
                value.
            aggregates: Answer's name and (column, function), or "rows" for the group's size.
                Functions are count, sum, mean, min, max, var and std (of n - 1), first, last,
                any, all, which are put together from each block's; median, n_unique and list,
                for which rows move. All but `list` leave missing values out.

        Example:
            flights.aggregate(["carrier"], flights="rows", mean_delay=("arr_delay", "mean"))
        """
        wanted = _aggregate.checked(aggregates, by, self.schema.names)
        if missing := [name for name in by if name not in self.schema.names]:
            raise DataError(f"aggregate: {missing} are no columns; give others in `by`")
        groups, name = list(by), "aggregate"
        if _aggregate.mergeable(wanted):
            step = Step(name, _aggregate.partial, (groups, wanted))
            found = self._then(step)
            finish = _aggregate.merge_parts
        else:
            needed = dict.fromkeys([*groups, *(column for column, _ in wanted.values() if column)])
            found = self.select(list(needed))
            finish = _aggregate.of_rows
        parts = _parts(found.nbytes()) if groups else 1
        pieces = _shuffle.by_hash(found.blocks(), (), groups, parts, name)
        made = _shuffle.merge(pieces, finish, groups, wanted, name=name)
        lineage = Lineage(name, plain({"by": groups, "of": aggregates}), (self.lineage,))
        return Table.from_blocks(made, lineage)._counted()

    def window(
        self,
        time: str,
        every: str,
        *,
        period: str | None = None,
        by: Sequence[str] = (),
        **aggregates: _aggregate.Of,
    ) -> Table:
        """Aggregates over windows of time, by the column `window`, their start.

        Args:
            time: A column of times.
            every: From one window's start to the next: a number and s, m, h, d or w. Starts are
                whole multiples.
            period: Length of a window, so that a row falls into several; `every` by default.
            by: Further columns that make a group.
            aggregates: As for `aggregate`.
        """
        step = Step("window", _aggregate.windows, (time, every, period))
        planned = self._then(step, time=time, every=every, period=period)
        return planned.aggregate(["window", *by], **aggregates)

    def sort(
        self,
        by: str | Sequence[str],
        *,
        descending: bool | Sequence[bool] = False,
        nulls_last: bool = False,
    ) -> Table:
        """Rows by the values of columns; equal ones keep their order.

        Blocks' samples give the bounds of parts, each of which is sorted in a task (sample
        sort; Frazer & McKellar, 1970).
        """
        keys = [by] if isinstance(by, str) else list(by)
        if missing := [name for name in keys if name not in self.schema.names]:
            raise DataError(f"sort: {missing} are no columns; the table has {self.schema.names}")
        flags = [descending] * len(keys) if isinstance(descending, bool) else list(descending)
        if not keys or len(flags) != len(keys):
            raise DataError(
                f"sort: give one or more columns and as many flags; given: by={keys}, "
                f"descending={descending}"
            )
        how = {"descending": flags, "nulls_last": [nulls_last] * len(keys)}
        pieces = _shuffle.by_range(self.blocks(), keys, how, _parts(self.nbytes()))
        made = _shuffle.merge(pieces, _shuffle.sort_rows, keys, how, name="sort")
        return Table.from_blocks(
            made, Lineage("sort", {"by": keys, **how}, (self.lineage,))
        )._counted()

    def distinct(self, columns: Sequence[str] | None = None) -> Table:
        """The first of rows that are equal in these columns, or in all.

        Rows keep their order within a block; up to 64 MiB there is one.
        """
        names = list(columns or self.schema.names)
        few = self._then(Step("distinct", _rows.distinct, (names,)))
        pieces = _shuffle.by_hash(few.blocks(), (), names, _parts(few.nbytes()), "distinct")
        made = _shuffle.merge(pieces, _rows.distinct_rows, names, name="distinct")
        lineage = Lineage("distinct", {"columns": names}, (self.lineage,))
        return Table.from_blocks(made, lineage)._counted()

    def partition_by(self, columns: str | Sequence[str], blocks: int) -> Table:
        """Bring all rows with equal values of the columns into one block; row order is kept."""
        names = [columns] if isinstance(columns, str) else list(columns)
        if blocks < 1:
            raise DataError(f"partition_by: blocks={blocks}; give at least 1")
        if missing := [name for name in names if name not in self.schema.names]:
            raise DataError(
                f"partition_by: {missing} are no columns; the table has {self.schema.names[:20]}"
            )
        pieces = _shuffle.by_hash(self._sources, self._steps, names, blocks, "partition_by")
        made = _shuffle.merge(pieces, _shuffle.same, name="partition_by")
        lineage = Lineage("partition_by", {"columns": names, "blocks": blocks}, (self.lineage,))
        return Table.from_blocks(made, lineage)._counted()

    def repartition(self, blocks: int) -> Table:
        """The same rows in the same order, dealt out evenly to so many blocks."""
        task, metas = table_task("repartition"), self.metas()
        ends = list(itertools.accumulate((meta.rows for meta in metas), initial=0))
        made = []
        for number in range(blocks):
            first, last = len(self) * number // blocks, len(self) * (number + 1) // blocks
            within = [
                (block, max(first, start) - start, min(last, end) - start)
                for block, start, end in zip(self.blocks(), ends, ends[1:], strict=False)
                if start < last and end > first
            ] or [(self.blocks()[0], 0, 0)]
            ranges = [(a, b) for _, a, b in within]
            made.append(task.remote(_rows.slices, ranges, *[block for block, _, _ in within]))
        return Table.from_blocks(made, Lineage("repartition", {"blocks": blocks}, (self.lineage,)))

    def with_row_number(self, column: str) -> Table:
        """Add the row's number in the Table, int64 from 0."""
        if column in self.schema.names:
            raise DataError(f"with_row_number: {column!r} is a column already; give another name")
        task = table_task("number_rows")
        firsts = itertools.accumulate((meta.rows for meta in self.metas()), initial=0)
        made = [
            task.remote(_rows.number, block, column, first)
            for block, first in zip(self.blocks(), firsts, strict=False)
        ]
        return Table.from_blocks(made, Lineage("number_rows", {"column": column}, (self.lineage,)))

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
        label = name or str(getattr(function, "__name__", "map_blocks"))
        task = table_task(label)
        made = [task.remote(_apply, s, self._steps, function, *args) for s in self._sources]
        return Table.from_blocks(made, _made_by(label, function, args, self.lineage))._counted()

    def split_blocks(
        self, function: Callable[..., tuple[pa.Table, pa.Table]], *args: Any, name: str
    ) -> tuple[Table, Table]:
        """Like `map_blocks`, for a function that deals the rows out to two Tables."""
        return self.split_sources(_apply, function, *args, name=name)

    def split_sources(
        self, function: Callable[..., tuple[pa.Table, pa.Table]], *args: Any, name: str
    ) -> tuple[Table, Table]:
        """Like `split_blocks`, for `function(source, steps, *args)`, which reads as it likes."""
        task = table_task(name, tables=2)
        made = [task.remote(function, s, self._steps, *args) for s in self._sources]
        lineages = [_made_by(f"{name} ({n} of 2)", function, args, self.lineage) for n in (1, 2)]
        return (
            Table.from_blocks([four[:2] for four in made], lineages[0])._counted(),
            Table.from_blocks([four[2:] for four in made], lineages[1])._counted(),
        )

    def gather(
        self, function: Callable[..., Any], *args: Any, name: str | None = None
    ) -> list[Any]:
        """What `function(block, *args)` gives for each block: small values, in this process.

        The way to statistics: partial ones in one task a block, merged by the caller.
        """
        task = value_task(name or str(getattr(function, "__name__", "gather")))
        return results(
            [task.remote(_apply, s, self._steps, function, *args) for s in self._sources]
        )

    def coordinate(self, function: Callable[..., Any], *args: Any, name: str) -> Any:
        """What `function(table, *args)` gives in a task of its own, which takes no CPU.

        For functions that gather statistics and make little of them: this process gets that only.
        """
        return coordinate(name, function, self, *args)

    def means(self) -> dict[str, float]:
        """The mean of each column; NaN for one without a value."""
        found = self.aggregate(**{name: (name, "mean") for name in self.schema.names})
        (values,) = found.gather(_rows.as_dicts, name="means")[0]
        return {name: float("nan") if v is None else float(v) for name, v in values.items()}

    def write_parquet(
        self, storage: Storage, path: str, *, partition_by: Sequence[str] = ()
    ) -> int:
        """Write a folder of Parquet files, one a block, in tasks; it appears when it is whole.

        Args:
            storage: Where.
            path: The folder's name.
            partition_by: Columns whose values become folders, `column=value`, and leave the
                files.

        Returns:
            Number of rows.
        """
        if missing := [name for name in partition_by if name not in self.schema.names]:
            raise DataError(f"write_parquet: {missing} are no columns to partition by")
        if set(partition_by) == set(self.schema.names):
            raise DataError(f"write_parquet: {list(partition_by)} are all columns: leave one over")
        task = value_task("write_parquet")
        with storage.staged(path) as folder:
            calls = [
                (_apply, source, self._steps, _write.parquet, folder, number, partition_by)
                for number, source in enumerate(self._sources)
            ]
            written = run_in_turn(task, calls)
        self.lineage.rows = sum(written)
        return self.lineage.rows

    def write_blocks(self, storage: Storage, path: str) -> str:
        """Write a folder from which `read_blocks` gives this very Table, block for block.

        Args:
            storage: Where.
            path: The folder's name; it appears when it is whole.

        Returns:
            A digest of the blocks.
        """
        task = value_task("write_blocks")
        with storage.staged(path) as folder:
            calls = [(_kept.write, block, folder, n) for n, block in enumerate(self.blocks())]
            written = run_in_turn(task, calls)
            kept = [schema for _, schema in written], self.schema, self.lineage
            folder.write_bytes(_kept.TABLE, pickle.dumps(kept))
        said = repr([digest for digest, _ in written])
        return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()

    @classmethod
    def read_blocks(cls, storage: Storage, path: str) -> Table:
        """The Table of a folder of `write_blocks`; each file is read by a task that needs it.

        Raises:
            StorageError: There is no such folder.
        """
        data = storage.read_bytes(f"{path}/{_kept.TABLE}")
        if data is None:
            raise StorageError(f"no Table at {storage.uri(path)}: `write_blocks` writes one")
        schemas, schema, lineage = pickle.loads(data)
        blocks = [
            _kept.KeptBlock(storage, f"{path}/{_kept.name_of(number)}", one)
            for number, one in enumerate(schemas)
        ]
        return cls.from_plan(blocks, schema, (), lineage)

    # --- inside ---

    def _then(self, step: Step, **said: Any) -> Table:
        """The Table after one more step, checked against the columns."""
        schema = planned_schema(self.schema, (step,))  # raises here what would come up in a task
        lineage = Lineage(
            step.name, plain(said), (self.lineage, *(table.lineage for table in step.tables))
        )
        return Table.from_plan(self._sources, schema, (*self._steps, step), lineage)

    def _name(self) -> str:
        """Of the tasks that do what is planned."""
        return "+".join(dict.fromkeys(step.name for step in self._steps)) or "read"

    def _counted(self) -> Table:
        self.lineage.rows = len(self)
        return self


def _parts(nbytes: int) -> int:
    """Blocks of so many bytes."""
    return max(1, -(-nbytes // BLOCK_BYTES))


def _apply(source: Any, steps: Sequence[Step], function: Callable[..., Any], *args: Any) -> Any:
    return function(evaluate(source, steps), *args)


def _made_by(
    name: str, function: Callable[..., Any], args: Sequence[Any], *inputs: Lineage
) -> Lineage:
    tables = [
        table
        for arg in args
        for table in (arg.values() if isinstance(arg, dict) else [arg])
        if isinstance(table, Table)
    ]
    said = {"arguments": [plain(arg) for arg in args if not isinstance(arg, Table)]}
    return Lineage(name, said, (*inputs, *(table.lineage for table in tables)), code_of(function))
