"""Tasks over blocks that know the number of their first row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.data._blocks import results, table_task, value_task
from raysys.data._lineage import Lineage, plain
from raysys.data._table import Table
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa

    # Calls function(block, number of its first row, *args) for each block; results in order.
    Each = Callable[..., Iterable[Any]]


def each_block(table: Table, name: str) -> Each:
    """A function that calls functions in one task a block; `name` is that of the tasks."""

    def call(function: Callable[..., Any], *args: Any) -> Iterator[Any]:
        task = value_task(name)
        refs = [task.remote(function, block, n, *args) for block, n in numbered(table)]
        for ref in refs:  # one by one, so that this process has the result of one block at a time
            yield results([ref])[0]

    return call


def deal(
    table: Table,
    parts: Sequence[str],
    function: Callable[..., tuple[pa.Table, ...]],
    *args: Any,
    name: str,
    how: Mapping[str, Any],
) -> list[Table]:
    """Tables of the parts, by name, that `function(block, its first row, *args)` returns.

    `name` is the operation in the dashboard and the lineage, `how` its parameters in the lineage.
    """
    task = table_task(name, tables=len(parts))
    calls = [task.remote(function, block, n, *args) for block, n in numbered(table)]
    parameters = {key: plain(value) for key, value in how.items()}
    return [
        Table.from_blocks(
            [refs[2 * number : 2 * number + 2] for refs in calls],
            Lineage(name, {**parameters, "part": part}, (table.lineage,)),
        )
        for number, part in enumerate(parts)
    ]


def numbered(table: Table) -> list[tuple[Any, int]]:
    """References to the blocks that have rows, each with the number of its first row."""
    firsts = np.cumsum([0, *(meta.rows for meta in table.metas())])
    return [
        (block, int(first))
        for block, meta, first in zip(table.blocks(), table.metas(), firsts, strict=False)
        if meta.rows
    ]


def need(table: Table, columns: Sequence[str]) -> None:
    """Refuse a table without these columns or without rows."""
    names = table.schema.names
    if not set(columns) <= set(names):
        raise DataError(f"no such columns: {columns!r}; give a list of some of {names}")
    if len(table) == 0:
        raise DataError("the table has no rows; check the filters before this call")
