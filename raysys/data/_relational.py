"""Relational operations of Tables: lazy ones that extend the plan, and ones that move rows."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from raysys.arguments import checked
from raysys.data import _aggregate, _join, _shuffle
from raysys.data._blocks import block_count, table_task
from raysys.data._lazy_plan import LazyOperation
from raysys.data._lineage import Lineage, plain
from raysys.data._planned_blocks import PlannedBlocks
from raysys.data._polars import pl
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    import pyarrow as pa


class RelationalTable(PlannedBlocks):
    """Selecting, joining, grouping and sorting rows."""

    # --- lazy ---

    @checked
    def select(self, columns: str | Sequence[str]) -> Self:
        """These columns, in this order. Lazy."""
        names = self._names("select", columns)
        if not names or len(set(names)) < len(names):
            raise DataError(f"select: give one or more columns, each once; given: {names}")
        operation = LazyOperation("select", pl.LazyFrame.select, (names,), columns=tuple(names))
        return self._planned(operation, columns=names)

    @checked
    def drop(self, columns: str | Sequence[str]) -> Self:
        """All columns but these. Lazy."""
        dropped = self._names("drop", columns)
        return self.select([name for name in self.columns if name not in dropped])

    @checked
    def rename(self, names: Mapping[str, str]) -> Self:
        """New names for some columns, old to new. Lazy."""
        operation = LazyOperation("rename", pl.LazyFrame.rename, (dict(names),))
        return self._planned(operation, names=dict(names))

    @checked
    def filter(self, predicate: pl.Expr) -> Self:
        """Rows for which a polars expression is true: neither false nor null. Lazy."""
        operation = LazyOperation("filter", pl.LazyFrame.filter, (predicate,))
        return self._planned(operation, predicate=predicate)

    @checked
    def with_columns(self, **columns: pl.Expr) -> Self:
        """Add or replace columns by polars expressions that need one row at a time. Lazy.

        An expression over several rows (a mean, a shift) would see only its block.
        """
        with_columns: Any = pl.LazyFrame.with_columns
        function = functools.partial(with_columns, **columns)
        return self._planned(LazyOperation("with_columns", function), columns=columns)

    @checked
    def join(
        self,
        right: PlannedBlocks,
        on: str | Sequence[str] | Mapping[str, str],
        how: _join.How = "left",
        *,
        suffix: str = "_right",
    ) -> Self:
        """Rows of two Tables with equal keys, side by side. A null key matches nothing.

        Computes the right side, because its size decides. A right side of up to 64 MiB is
        broadcast: the join is lazy and rows keep this Table's order. A larger one, and `full`,
        run the join now: both sides move by the hash of their keys, and rows keep this Table's
        order only within a block.

        Args:
            right: The right side.
            on: Key columns of both, or left to right.
            how: `inner`; `left` keeps all rows of this Table; `full` of both; `semi` and `anti`
                keep this Table's columns, and its rows with or without a match.
            suffix: Appended to columns of the right side whose names the left side has.

        Raises:
            DataError: A key is missing on a side, or its types differ.
        """
        if how not in get_args(_join.How):
            raise DataError(f"join: how={how!r}; give one of {list(get_args(_join.How))}")
        keys = _join.keys_of(on, self.schema, right.schema)
        parameters = {"on": keys, "how": how, "suffix": suffix}
        operation = LazyOperation("join", _join.join_rows, (keys, how, suffix), (right,))
        planned = self._planned(operation, **parameters)  # raises if the columns do not fit
        if how != "full" and right.nbytes() <= _join.BROADCAST_BYTES:
            return planned
        pairs = _join.join_by_hash(self, right, keys, how, suffix)
        return self._computed("join", pairs, parameters, right.lineage)

    # --- computing: a new Table ---

    @checked
    def aggregate(self, by: Sequence[str] = (), **aggregates: _aggregate.Aggregation) -> Self:
        """One row for each group, ascending by group (within a block, if there are several).

        Args:
            by: Grouping columns; without any, one row over all rows. Nulls are a group.
            aggregates: (column, function) by the result's name, or "rows" for the group's size.
                Functions are count, sum, mean, min, max, var and std (of n - 1), first, last,
                any, all, which are merged from each block's; median, n_unique and list, for
                which rows move. All but `list` ignore missing values.

        Example:
            flights.aggregate(["carrier"], flights="rows", mean_delay=("arr_delay", "mean"))
        """
        pairs = _aggregate.aggregate(self, by, aggregates)
        return self._computed("aggregate", pairs, {"by": list(by), "of": aggregates})

    @checked
    def window(
        self,
        time: str,
        every: str,
        *,
        period: str | None = None,
        by: Sequence[str] = (),
        **aggregates: _aggregate.Aggregation,
    ) -> Self:
        """Aggregates over windows of time; the column `window` is their start.

        Args:
            time: A column of times.
            every: From one window's start to the next: a number and s, m, h, d or w. Starts are
                whole multiples.
            period: Length of a window, so that a row falls into several; `every` by default.
            by: Further columns that make a group.
            aggregates: As for `aggregate`.
        """
        self._names("window", time)
        operation = LazyOperation("window", _aggregate.windows, (time, every, period))
        planned = self._planned(operation, time=time, every=every, period=period)
        return planned.aggregate(["window", *by], **aggregates)

    @checked
    def sort(
        self,
        by: str | Sequence[str],
        *,
        descending: bool | Sequence[bool] = False,
        nulls_last: bool = False,
    ) -> Self:
        """Rows sorted by columns; rows with equal keys keep their order.

        Samples of the blocks give the bounds of parts, each of which is sorted in a task (sample
        sort; Frazer & McKellar, 1970).
        """
        keys = self._names("sort", by)
        flags = [descending] * len(keys) if isinstance(descending, bool) else list(descending)
        if not keys or len(flags) != len(keys):
            raise DataError(
                f"sort: give one or more columns and as many flags; given: by={keys}, "
                f"descending={descending}"
            )
        order = {"descending": flags, "nulls_last": [nulls_last] * len(keys)}
        pieces = _shuffle.by_range(self.blocks(), keys, order, block_count(self.nbytes()))
        pairs = _shuffle.merge(pieces, LazyOperation("sort", _shuffle.sort_rows, (keys, order)))
        return self._computed("sort", pairs, {"by": keys, **order})

    @checked
    def distinct(self, columns: str | Sequence[str] | None = None) -> Self:
        """The first of rows that are equal in these columns, or in all.

        Rows keep their order within a block; up to 64 MiB there is one.
        """
        names = self._names("distinct", columns) if columns else self.columns
        unique = functools.partial(pl.LazyFrame.unique, keep="first", maintain_order=True)
        operation = LazyOperation("distinct", unique, (names,))
        fewer = self._planned(operation)
        pieces = _shuffle.by_hash(
            fewer.blocks(), (), names, block_count(fewer.nbytes()), "distinct"
        )
        return self._computed("distinct", _shuffle.merge(pieces, operation), {"columns": names})

    @checked
    def partition_by(self, columns: str | Sequence[str], blocks: int) -> Self:
        """Bring all rows with equal values of the columns into one block, in row order."""
        names = self._names("partition_by", columns)
        if blocks < 1:
            raise DataError(f"partition_by: blocks={blocks}; give at least 1")
        pieces = _shuffle.by_hash(self._sources, self._operations, names, blocks, "partition_by")
        pairs = _shuffle.merge(pieces, name="partition_by")
        return self._computed("partition_by", pairs, {"columns": names, "blocks": blocks})

    @checked
    def repartition(self, blocks: int) -> Self:
        """The same rows in the same order, in this many blocks of about equal numbers of rows."""
        if blocks < 1:
            raise DataError(f"repartition: blocks={blocks}; give at least 1")
        pairs = _shuffle.evenly(self.blocks(), [meta.rows for meta in self.metas()], blocks)
        return self._computed("repartition", pairs, {"blocks": blocks})

    def with_row_number(self, column: str) -> Self:
        """Add the row's number in the Table, int64 from 0."""
        if column in self.columns:
            raise DataError(f"with_row_number: column {column!r} exists already; give another name")
        task = table_task("number_rows")
        firsts = itertools.accumulate((meta.rows for meta in self.metas()), initial=0)
        pairs = [
            task.remote(_number_rows, block, column, first)
            for block, first in zip(self.blocks(), firsts, strict=False)
        ]
        return self._computed("number_rows", pairs, {"column": column})

    def _computed(
        self, name: str, pairs: Sequence[Any], parameters: Mapping[str, Any], *inputs: Lineage
    ) -> Self:
        """The Table of (block, meta) refs that an operation's tasks return."""
        lineage = Lineage(name, plain(dict(parameters)), (self.lineage, *inputs))
        return self.from_blocks(pairs, lineage)


def _number_rows(block: pa.Table, column: str, first: int) -> pa.Table:
    return block.append_column(column, [np.arange(first, first + len(block))])
