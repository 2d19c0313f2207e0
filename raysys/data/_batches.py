"""Rows of a Table in batches, computed and fetched a little ahead."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from raysys.data._blocks import results, value_task
from raysys.data._lazy_plan import evaluate
from raysys.data._shuffle import concat
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from raysys.data._table import Table

_AHEAD = 4  # blocks that are computed before they are asked for


def iter_batches(table: Table, rows: int) -> Iterator[pa.Table]:
    """Rows in order, in batches of `rows`; see `Table.iter_batches`."""
    if rows < 1:
        raise DataError(f"iter_batches: rows={rows}; give at least 1")
    none, task = table.schema.empty_table(), value_task(table._task_name())
    sources, operations, planned = table._sources, table._operations, table._metas is None
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
