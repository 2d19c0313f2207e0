"""Blocks in the object store, and the tasks that make them."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from raysys.cluster import task_error_cause
from raysys.errors import RaysysError
from raysys.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

# What a block is made to hold, about: small enough that a few fit beside each other in a
# worker's memory, large enough that a task's start does not show. A constant, so that the
# blocks are a function of the data and not of the cluster.
BLOCK_BYTES = 64 << 20
_KEYS = ("operation",)  # the task's name
_AT_ONCE = 64  # tasks of `run_in_turn`: more than there are CPUs for, few enough to wait for


@dataclass(frozen=True)
class BlockMeta:
    """What the driver knows of a block: everything but its rows."""

    rows: int
    nbytes: int
    schema: pa.Schema


def described(table: pa.Table) -> tuple[pa.Table, BlockMeta]:
    """A block and what the driver knows of it: what a task gives for `Table.of`."""
    # A filter that lets nothing through leaves columns without a chunk, which few can read.
    block = table.combine_chunks() if len(table) else table.schema.empty_table()
    return block, BlockMeta(len(block), block.nbytes, block.schema)


def block_count(nbytes: int) -> int:
    """Blocks for rows of this many bytes."""
    return max(1, -(-nbytes // BLOCK_BYTES))


def table_task(name: str, tables: int = 1) -> Any:
    """A task that returns (block, meta) for each table that its function makes."""
    return ray.remote(_run_described).options(name=name, num_returns=2 * tables)


def value_task(name: str, returns: int = 1) -> Any:
    """A task that returns what its function gives, or the items of it."""
    return ray.remote(_run).options(name=name, num_returns=returns)


def coordinate(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """What `function(*args)` gives in a task of its own, which takes no CPU.

    For functions that start tasks and put together what these give, when that is more than the
    caller should be sent.
    """
    task = ray.remote(_run).options(name=name, num_cpus=0)
    return results([task.remote(function, *args)])[0]


def run_in_turn(task: Any, calls: Sequence[Sequence[Any]]) -> list[Any]:
    """What `task.remote(*call)` gives for each call, a few running at a time.

    For tasks that leave something: after an error no more are begun, and none runs any more
    when it is raised. (Ray's own way to cancel tasks can end the driver, in 2.60.)
    """
    found: list[Any] = [None] * len(calls)
    running: dict[Any, int] = {}
    todo = iter(enumerate(calls))
    try:
        while True:
            for number, call in itertools.islice(todo, _AT_ONCE - len(running)):
                running[task.remote(*call)] = number
            if not running:
                return found
            (ready,), _ = ray.wait(list(running), num_returns=1)
            found[running.pop(ready)] = results([ready])[0]
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


def _run_described(function: Callable[..., Any], *args: Any) -> tuple[Any, ...]:
    made = _run(function, *args)
    returned: list[Any] = []
    for table in made if isinstance(made, tuple) else (made,):
        block, meta = described(table)
        returned += block, meta
        _count(meta)
    return tuple(returned)


def _count(meta: BlockMeta) -> None:
    """Metrics of a block that this task has made."""
    if ray.is_initialized():
        tags = {"operation": ray.get_runtime_context().get_task_name() or ""}
        metrics.DATA_ROWS.inc(meta.rows, tags)
        metrics.DATA_BYTES.inc(meta.nbytes, tags)
