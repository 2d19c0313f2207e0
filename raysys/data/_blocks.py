"""Blocks in the object store, and the tasks that make them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.errors import RaysysError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

# What a block is made to hold, about: small enough that a few fit beside each other in a
# worker's memory, large enough that a task's start does not show. A constant, so that the
# blocks are a function of the data and not of the cluster.
BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class BlockMeta:
    """What the driver knows of a block: everything but its rows."""

    rows: int
    nbytes: int
    schema: pa.Schema


def described(table: pa.Table) -> tuple[pa.Table, BlockMeta]:
    """A block and what the driver knows of it: what a task gives for `Table.of`."""
    block = table.combine_chunks()
    return block, BlockMeta(len(block), block.nbytes, block.schema)


def table_task(name: str, tables: int = 1) -> Any:
    """A task that returns (block, meta) for each table that its function makes."""
    import ray

    return ray.remote(_run_described).options(name=name, num_returns=2 * tables)


def value_task(name: str, returns: int = 1) -> Any:
    """A task that returns what its function gives, or the items of it."""
    import ray

    return ray.remote(_run).options(name=name, num_returns=returns)


def results(refs: Sequence[Any], *, cancel: bool = False) -> list[Any]:
    """Values of tasks; an error of ours comes as itself, without the task's traceback.

    Args:
        refs: Of the tasks.
        cancel: After an error, end the other tasks and wait for them: they leave something.
    """
    import ray

    try:
        return ray.get(list(refs))
    except BaseException as error:
        if cancel:
            for ref in refs:
                ray.cancel(ref)
            ray.wait(list(refs), num_returns=len(refs))
        if not isinstance(error, ray.exceptions.RayTaskError):
            raise
        cause: BaseException = error
        while isinstance(cause, ray.exceptions.RayTaskError):  # of a task that another waited for
            cause = cause.cause
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
        returned += described(table)
    return tuple(returned)
