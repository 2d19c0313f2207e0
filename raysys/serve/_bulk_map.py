"""Bulk inference: a graph mapped over a Table by a pool of actors."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from raysys import cluster
from raysys.console import say
from raysys.data import Lineage, Table, block_digest, described
from raysys.errors import DataError
from raysys.identity import RunIdentity
from raysys.serve._outputs import as_outputs, concat_outputs, output_columns

if TYPE_CHECKING:
    from raysys.data import BlockMeta
    from raysys.serve._graph import Graph
    from raysys.storage import Storage

_IN_FLIGHT = 2  # blocks per actor, so that the next is there when one is done
_MAX_DEATHS = 10
_PROGRESS_S = 5.0


def map_table(
    graph: Graph, table: Table, *, name: str = "map", batch_size: int = 2048,
    max_actors: int | None = None, storage: Storage | None = None, path: str | None = None,
) -> Table:  # fmt: skip
    """Run a graph over the rows of a Table, on actors of the whole cluster.

    All nodes run in each actor, which requests the largest of their placements. Actors are
    requested at once, and each takes blocks as soon as it is scheduled. The block of an actor that
    dies is retried on another.

    Args:
        graph: Its inputs are columns of the Table; other columns are ignored.
        table: Its blocks are the units of work.
        name: Name in progress messages and in the lineage.
        batch_size: Number of rows per call of the nodes.
        max_actors: Maximum number of actors; by default all CPUs but a reserve for tasks.
        storage: With `path`: each block's outputs are written there when they are computed, and an
            interrupted run resumes from them.
        path: Folder in the storage.

    Returns:
        The outputs in row order, a column for each output.

    Raises:
        DataError: A column is missing or has the wrong type, or the path holds outputs of another
            graph.
    """
    if missing := [column for column in graph.inputs if column not in table.schema.names]:
        raise DataError(f"the table lacks the columns {missing}; it has {table.schema.names}")
    placements = [node.placement for node in graph.nodes.values() if node.placement]
    cpus = max([1.0, *(place.cpus for place in placements)])
    gpus = max([0.0, *(place.gpus for place in placements)])
    cluster.require(f"{name}: one actor", cpus=cpus, gpus=gpus)
    if max_actors is None:
        limits = cluster.limits()
        max_actors = int((limits.cpus - cluster.HEADROOM_CPUS) / cpus)
        if gpus:
            max_actors = min(max_actors, int(limits.gpus / gpus))
    has_unused = len(table.schema.names) > len(graph.inputs)
    inputs = table.select(list(graph.inputs)) if has_unused else table
    cache = None
    if storage is not None and path:
        cache = storage, path
        identity = RunIdentity({"graph": graph.fingerprint})
        identity.claim(storage, path, f"map {name!r}", error=DataError)
    actor = ray.remote(_Mapper).options(num_cpus=cpus, num_gpus=gpus)
    start = functools.partial(actor.remote, ray.put(graph), batch_size, cache)
    return Table.from_blocks(
        _map_blocks(inputs.blocks(), start, max_actors, name),
        Lineage(name, {}, (table.lineage,), graph.fingerprint),
    )


def _map_blocks(
    blocks: Sequence[Any], start: Callable[[], Any], max_actors: int, name: str
) -> list[tuple[Any, Any]]:
    """(block, meta) references of the blocks' outputs, from actors that `start` returns."""
    pending = deque(range(len(blocks)))
    workers = [start() for _ in range(max(1, min(max_actors, len(pending))))]
    starting = {worker.ready.remote(): worker for worker in workers}
    running: dict[Any, tuple[int, Any]] = {}
    load: dict[Any, int] = {}
    results: dict[int, tuple[Any, Any]] = {}
    deaths = 0
    reported = started = time.monotonic()
    try:
        while len(results) < len(blocks):
            for worker in load:
                while pending and load[worker] < _IN_FLIGHT:
                    number = pending.popleft()
                    block, meta = worker.run.options(num_returns=2).remote(blocks[number])
                    running[meta] = (number, (worker, block))
                    load[worker] += 1
            (ready, *_), _ = ray.wait([*starting, *running], num_returns=1)
            try:
                ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise cluster.task_error_cause(error) from None
            except ray.exceptions.RayActorError as error:
                if ready in starting:
                    raise
                number, (worker, _) = running.pop(ready)
                pending.appendleft(number)
                if load.pop(worker, None) is not None:
                    deaths += 1
                    say(
                        f"{name}: an actor died ({type(error).__name__}), death {deaths} of at "
                        f"most {_MAX_DEATHS}; its blocks are retried"
                    )
                    if deaths >= _MAX_DEATHS:
                        raise
                    worker = start()
                    starting[worker.ready.remote()] = worker
                continue
            if ready in starting:
                load[starting.pop(ready)] = 0
                continue
            number, (worker, block) = running.pop(ready)
            results[number] = (block, ready)
            load[worker] -= 1
            if time.monotonic() - reported > _PROGRESS_S:
                reported = time.monotonic()
                progress = f"{len(results)} of {len(blocks)} blocks"
                say(f"{name}: {progress} in {reported - started:.0f} s")
    finally:
        for worker in [*load, *starting.values()]:
            ray.kill(worker)
    return [results[number] for number in range(len(blocks))]


class _Mapper:
    """An actor that holds the graph; the cache has outputs by the digest of their block."""

    def __init__(self, graph: Graph, batch_size: int, cache: tuple[Storage, str] | None) -> None:
        self._graph, self._batch_size, self._cache = graph, batch_size, cache
        graph.load(graph.order)

    def __repr__(self) -> str:  # its name in the dashboard
        return f"map:{self._graph.output}"

    def ready(self) -> None:
        """Returns when the models are loaded."""

    def run(self, block: pa.Table) -> tuple[pa.Table, BlockMeta]:
        """The outputs of a block's rows."""
        from raysys.serve.protocols import _arrow

        if self._cache:
            storage, folder = self._cache
            path = f"{folder}/{block_digest(block)}.arrow"
            if (data := storage.read_bytes(path)) is not None:
                return described(pa.ipc.open_file(pa.BufferReader(data)).read_all())
        graph, parts = self._graph, []
        columns = _arrow.from_table(block, graph.inputs)
        for start in range(0, max(1, len(block)), self._batch_size):
            stop = min(len(block), start + self._batch_size)
            batch = {name: column[start:stop] for name, column in columns.items()}
            value = graph.run(graph.order, batch)[graph.output]
            parts.append(as_outputs(graph.output, value, stop - start))
        computed = output_columns(graph.output, concat_outputs(parts))
        outputs = pa.Table.from_batches([_arrow.to_batch(computed)])
        if self._cache:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, outputs.schema) as writer:
                writer.write_table(outputs)
            storage.write_bytes(path, sink.getvalue().to_pybytes())
        return described(outputs)
