"""Blocks in the object store, and the tasks that compute them."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from raysys.cluster import task_error_cause
from raysys.data._supported_types import supported
from raysys.errors import RaysysError
from raysys.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# Approximate size of a block: small enough that a few fit in a worker's memory, large enough to
# amortize a task's start. A constant, so that blocks depend on the data and not on the cluster.
BLOCK_BYTES = 64 << 20
_AT_ONCE = 64  # tasks of `run_in_turn`: more than CPUs, few enough to wait for


@dataclass(frozen=True)
class BlockMeta:
    """Metadata of a block, in the driver: all but its rows."""

    rows: int
    nbytes: int
    schema: pa.Schema


def described(table: pa.Table) -> tuple[pa.Table, BlockMeta]:
    """A block and its metadata: the result of a task for `Table.from_blocks`.

    Raises:
        DataError: A column has an unsupported type.
    """
    table = supported(table)
    # A filter that drops all rows leaves columns without a chunk, which many readers reject.
    block = table.combine_chunks() if len(table) else table.schema.empty_table()
    return block, BlockMeta(len(block), block.nbytes, block.schema)


def block_count(nbytes: int) -> int:
    """Blocks for rows of this many bytes."""
    return max(1, -(-nbytes // BLOCK_BYTES))


def table_task(name: str, tables: int = 1, values: int = 0) -> Any:
    """A task that returns (block, meta) for each table that its function returns, and values."""
    return ray.remote(_run_described).options(name=name, num_returns=2 * tables + values)


def value_task(name: str) -> Any:
    """A task that returns its function's result."""
    return ray.remote(_run).options(name=name)


def scatter(
    name: str, parts: int, function: Callable[..., Any], calls: Iterable[Sequence[Any]]
) -> list[list[Any]]:
    """Refs of the `parts` values that `function(*call)` returns, [call][part]: a task a call."""
    task = ray.remote(_run_parts).options(name=name, num_returns=parts)
    refs = [task.remote(function, *call) for call in calls]
    return [[ref] for ref in refs] if parts == 1 else refs


def coordinate(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """The result of `function(*args)` in a task of its own, which reserves no CPU.

    For functions that start tasks and merge results that are too large for the caller.
    """
    task = ray.remote(_run).options(name=name, num_cpus=0)
    return results([task.remote(function, *args)])[0]


def run_in_turn(task: Any, calls: Sequence[Sequence[Any]]) -> list[Any]:
    """Results of `task.remote(*call)` for each call, a few running at a time.

    For tasks with side effects: after an error no task is started, and none is still running
    when it is raised. (Cancelling tasks can crash the driver in Ray 2.60.)
    """
    values: list[Any] = [None] * len(calls)
    running: dict[Any, int] = {}
    todo = iter(enumerate(calls))
    try:
        while True:
            for number, call in itertools.islice(todo, _AT_ONCE - len(running)):
                running[task.remote(*call)] = number
            if not running:
                return values
            (ready,), _ = ray.wait(list(running), num_returns=1)
            values[running.pop(ready)] = results([ready])[0]
    finally:
        if running:
            ray.wait(list(running), num_returns=len(running))


def results(refs: Sequence[Any]) -> list[Any]:
    """Values of tasks; an error of ours comes as itself, without the task's traceback."""
    try:
        return ray.get(list(refs))
    except ray.exceptions.RayTaskError as error:
        cause = task_error_cause(error)
        if isinstance(cause, RaysysError):
            raise cause from None
        raise


def _run(function: Callable[..., Any], *args: Any) -> Any:
    # Tasks are the parallelism; polars' own threads would only add to them.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    return function(*args)


def _run_parts(function: Callable[..., Any], *args: Any) -> Any:
    values = _run(function, *args)
    return values[0] if len(values) == 1 else values


def _run_described(function: Callable[..., Any], *args: Any) -> tuple[Any, ...]:
    values = _run(function, *args)
    returned: list[Any] = []
    for value in values if isinstance(values, tuple) else (values,):
        if not isinstance(value, pa.Table):
            returned.append(value)
            continue
        block, meta = described(value)
        returned += block, meta
        if ray.is_initialized():
            tags = {"operation": ray.get_runtime_context().get_task_name() or ""}
            metrics.DATA_ROWS.inc(meta.rows, tags)
            metrics.DATA_BYTES.inc(meta.nbytes, tags)
    return tuple(returned)
