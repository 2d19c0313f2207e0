"""The hand-off between stages: references to Arrow blocks, never a pickled table."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa
import ray

from raysys.arguments import checked
from raysys.data import _block_files, _conversions
from raysys.data import _describe as _summaries
from raysys.data._block_files import write_part
from raysys.data._blocks import coordinate, described, results, run_in_turn, table_task, value_task
from raysys.data._lazy_plan import evaluate
from raysys.data._lineage import Lineage, code_of, plain
from raysys.data._planned_blocks import evaluate_and_call
from raysys.data._polars import pl
from raysys.data._relational import RelationalTable
from raysys.data._row_hash import block_digest
from raysys.data._shuffle import common_schema, concat
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd

    from raysys.storage import Storage

_AHEAD = 4  # blocks of `iter_batches` that are computed before they are asked for


class Table(RelationalTable):
    """A distributed table: Arrow blocks in the object store, or the plan of them.

    A Table is small and pickles cheaply: pass it to a task or actor and call `to_arrow()` there,
    which maps the blocks without copying them.

    Properties (`schema`, `columns`, `lineage`) and `repr` never start work. Methods are:

    - lazy: `select`, `drop`, `table[["a", "b"]]`, `rename`, `filter`, `with_columns` and joins
      with a small right side only extend the plan. The next method that needs rows runs the plan
      in one task a block, and reads no more columns and row groups of a file than it takes.
    - computing: all others run the plan in tasks. `len`, `nbytes`, `blocks`, `metas`,
      `fingerprint` and `materialize` keep the blocks for later calls; call `materialize` before
      a Table is used twice. `table["a"]`, `head`, `to_arrow`, `to_pandas`, `to_polars` and
      `iter_batches` bring rows into this process.

    How rows lie in blocks depends on the data alone, so one node and four give the same Table.
    Columns are computed with polars' expressions (`pl.col("distance") / pl.col("air_time")`).
    """

    @classmethod
    @checked
    def load(cls, read: Callable[..., pa.Table], *args: Any, name: str = "load") -> Table:
        """A Table of one block that a task reads, on whatever node it runs."""
        return cls.from_blocks(
            [table_task(name).remote(read, *args)], _lineage_of_call(name, read, args)
        )

    @classmethod
    @checked
    def from_modin(
        cls, frame: Any, name: str = "from_modin", inputs: Sequence[Table] = ()
    ) -> Table:
        """A Table of a Modin frame's row partitions, converted in place.

        Args:
            frame: The frame.
            name: Name of the tasks in the dashboard.
            inputs: Tables that the frame was computed from, for the lineage.
        """
        partitions = _conversions.modin_partitions(frame)
        task = table_task(name)
        table = cls.from_blocks([task.remote(_conversions.from_pandas, p) for p in partitions])
        # What was done to the frame is unknown: its content identifies it.
        digest, chain = table.fingerprint(), tuple(part.lineage for part in inputs)
        table.lineage = Lineage(name, {"content": digest}, chain, "", len(table), digest)
        return table

    @classmethod
    @checked
    def from_arrow(cls, table: pa.Table, rows_per_block: int = 1_000_000) -> Table:
        """A Table of rows in this process; for small ones, and tests."""
        if rows_per_block < 1:
            raise DataError(f"from_arrow: rows_per_block={rows_per_block}; give at least 1")
        starts = range(0, max(1, len(table)), rows_per_block)
        pairs = [described(table.slice(start, rows_per_block)) for start in starts]
        return cls(
            [ray.put(block) for block, _ in pairs],
            [meta for _, meta in pairs],
            Lineage("from_arrow", {"content": block_digest(table)}),
        )

    @classmethod
    @checked
    def from_pandas(cls, frame: pd.DataFrame, rows_per_block: int = 1_000_000) -> Table:
        """A Table of a pandas frame in this process, without its row labels."""
        return cls.from_arrow(_conversions.from_pandas(frame), rows_per_block)

    @classmethod
    @checked
    def from_polars(cls, frame: pl.DataFrame, rows_per_block: int = 1_000_000) -> Table:
        """A Table of a polars frame in this process."""
        return cls.from_arrow(frame.to_arrow(), rows_per_block)

    @classmethod
    @checked
    def concat(cls, tables: Sequence[Table]) -> Table:
        """The rows of several Tables after one another; numbers become the widest type."""
        if not tables:
            raise DataError("concat: no Tables; give at least one")
        names = tables[0].columns
        for number, table in enumerate(tables):
            if sorted(table.columns) != sorted(names):
                raise DataError(
                    f"concat: Table {number} has the columns {table.columns[:20]}, the first "
                    f"has {names[:20]}: select or rename them so that they are the same"
                )
        ordered = [t if t.columns == names else t.select(names) for t in tables]
        common_schema([table.schema for table in ordered], "concat: Table")
        return cls(
            [block for table in ordered for block in table.blocks()],
            [meta for table in ordered for meta in table.metas()],
            Lineage("concat", inputs=tuple(table.lineage for table in tables)),
        )

    # --- computing: rows in this process ---

    def describe(self) -> pl.DataFrame:
        """Count, missing values, mean, standard deviation, minimum and maximum of each column.

        A row for each statistic; the mean and deviation of numbers and booleans only.
        """
        return _summaries.describe(self)

    @checked
    def head(self, rows: int = 5) -> pl.DataFrame:
        """The first rows; reads only the blocks that have them, and keeps none."""
        return _summaries.head(self, rows)

    def to_arrow(self) -> pa.Table:
        """All rows in this process, mapped from the object store; without a cluster, from files."""
        if not ray.is_initialized():
            stored = _block_files.stored_rows(self._sources, self._operations)
            if stored is not None:
                return stored
        return pa.concat_tables(results(self.blocks()), promote_options="permissive")

    def to_pandas(self) -> Any:
        """All rows as a pandas frame in this process."""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> pl.DataFrame:
        """All rows as a polars frame in this process, over the same memory but for text."""
        frame = pl.from_arrow(self.to_arrow())
        assert isinstance(frame, pl.DataFrame)
        return frame

    def iter_batches(self, rows: int) -> Iterator[pa.Table]:
        """Rows in order, in batches of `rows`; the last batch has the remainder.

        A few blocks are computed and fetched ahead; a planned Table is not kept.
        """
        if rows < 1:
            raise DataError(f"iter_batches: rows={rows}; give at least 1")
        none, task = self.schema.empty_table(), value_task(self._task_name())
        sources, operations, planned = self._sources, self._operations, self._metas is None
        pending: list[pa.Table] = []
        pending_rows = 0
        waiting: deque[Any] = deque()
        for number in range(len(sources) + _AHEAD):
            if number < len(sources):
                source = sources[number]
                waiting.append(task.remote(evaluate, source, operations) if planned else source)
            if number < _AHEAD:
                continue
            pending += results([waiting.popleft()])
            pending_rows += len(pending[-1])
            if pending_rows < rows:
                continue
            joined, left = concat(none, *pending), pending_rows % rows
            for start in range(0, pending_rows - left, rows):
                yield joined.slice(start, rows)
            pending, pending_rows = [joined.slice(pending_rows - left)], left
        if pending_rows:
            yield concat(none, *pending)

    @overload
    def __getitem__(self, columns: str) -> pa.ChunkedArray: ...

    @overload
    def __getitem__(self, columns: list[str]) -> Table: ...

    def __getitem__(self, columns: str | list[str]) -> Any:
        """The values of a column in this process, or a lazy Table of a list of columns."""
        if not isinstance(columns, str):
            return self.select(columns)
        (name,) = self._names("table[...]", columns)
        table = self.select(name) if self._metas is None else self
        return table.to_arrow()[name]

    # --- computing: views for other libraries ---

    def to_modin(self) -> Any:
        """A Modin frame whose row partitions are converted from the blocks, in tasks."""
        return _conversions.to_modin(self)

    def to_ray_dataset(self) -> Any:
        """A `ray.data.Dataset` over the same blocks."""
        return ray.data.from_arrow_refs(list(self.blocks()))

    def to_dmatrix(self, *, label: str, group: str | None = None, **options: Any) -> Any:
        """A `RayDMatrix`: each of xgboost-ray's actors maps whole blocks itself.

        Args:
            label: Column of the label.
            group: For ranking, the column of query ids: ascending, each value in one block.
            options: Options of RayDMatrix, such as `weight` or `ignore`; columns by name.
        """
        query = {"qid": group} if group else {}
        return _conversions.to_dmatrix(self, label=label, **query, **options)

    # --- computing: functions over blocks ---

    @checked
    def map_blocks(
        self, function: Callable[..., pa.Table], *args: Any, name: str | None = None
    ) -> Table:
        """Apply `function(block, *args)` to each block, in one task a block.

        Args:
            function: Takes and returns a `pyarrow.Table`.
            args: Further arguments. Tables among them travel as references; an ObjectRef
                arrives as its value.
            name: Name of the tasks in the dashboard; the function's by default.
        """
        label = name or str(getattr(function, "__name__", "map_blocks"))
        task = table_task(label)
        pairs = [
            task.remote(evaluate_and_call, s, self._operations, function, *args)
            for s in self._sources
        ]
        return Table.from_blocks(pairs, _lineage_of_call(label, function, args, self.lineage))

    def split_blocks(
        self, function: Callable[..., tuple[pa.Table, pa.Table]], *args: Any, name: str
    ) -> tuple[Table, Table]:
        """Like `map_blocks`, for a function that splits each block in two."""
        return self.split_sources(evaluate_and_call, function, *args, name=name)[:2]

    def split_sources(
        self, function: Callable[..., tuple[Any, ...]], *args: Any, name: str, values: int = 0
    ) -> tuple[Table, Table, list[Any]]:
        """Like `split_blocks`, for `function(source, operations, *args)`, which evaluates both.

        It may return further values after the two tables: their references, by block.
        """
        task = table_task(name, tables=2, values=values)
        pairs = [task.remote(function, s, self._operations, *args) for s in self._sources]
        lineages = [
            _lineage_of_call(f"{name} ({n} of 2)", function, args, self.lineage) for n in (1, 2)
        ]
        return (
            Table.from_blocks([refs[:2] for refs in pairs], lineages[0]),
            Table.from_blocks([refs[2:4] for refs in pairs], lineages[1]),
            [refs[4:] for refs in pairs],
        )

    def coordinate(self, function: Callable[..., Any], *args: Any, name: str) -> Any:
        """Result of `function(table, *args)` in a task of its own, which reserves no CPU.

        For functions that gather many statistics and return few values to this process.
        """
        return coordinate(name, function, self, *args)

    def means(self) -> dict[str, float]:
        """The mean of each column; NaN for one without a value."""
        means = self.aggregate(**{name: (name, "mean") for name in self.columns})
        ((row,),) = means.gather(pa.Table.to_pylist, name="means")  # no table to this process
        return {name: float("nan") if v is None else float(v) for name, v in row.items()}

    # --- computing: files ---

    @checked
    def write_parquet(
        self, storage: Storage, path: str, *, partition_by: str | Sequence[str] = ()
    ) -> int:
        """Write a folder of Parquet files, one a block, in tasks; it appears when complete.

        Args:
            storage: Root to write under.
            path: Name of the folder.
            partition_by: Columns whose values become folders, `column=value`, and leave the
                files.

        Returns:
            Number of rows.
        """
        names = self._names("write_parquet", partition_by)
        if set(names) == set(self.columns):
            raise DataError(f"write_parquet: {names} are all columns; partition by fewer")
        task = value_task("write_parquet")
        with storage.staged(path) as folder:
            calls = [
                (evaluate_and_call, source, self._operations, write_part, folder, number, names)
                for number, source in enumerate(self._sources)
            ]
            self.lineage.rows = sum(run_in_turn(task, calls))
        return self.lineage.rows

    def write_blocks(self, storage: Storage, path: str) -> str:
        """Write a folder from which `read_blocks` restores this Table, block for block.

        Args:
            storage: Root to write under.
            path: Name of the folder; it appears when complete.

        Returns:
            A digest of the blocks.
        """
        return _block_files.write_table(self, storage, path)

    @classmethod
    def read_blocks(cls, storage: Storage, path: str) -> Table:
        """The lazy Table of a folder of `write_blocks`; tasks read the files that they need.

        Raises:
            StorageError: The folder does not exist.
        """
        return cls.from_plan(*_block_files.read_table(storage, path))


def _lineage_of_call(
    name: str, function: Callable[..., Any], args: Sequence[Any], *inputs: Lineage
) -> Lineage:
    tables = [
        table
        for arg in args
        for table in (arg.values() if isinstance(arg, dict) else [arg])
        if isinstance(table, Table)
    ]
    parameters = {"arguments": [plain(arg) for arg in args if not isinstance(arg, Table)]}
    chain = (*inputs, *(table.lineage for table in tables))
    return Lineage(name, parameters, chain, code_of(function))
