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
    graph: Graph, table: Table, *, keep: Sequence[str], name: str, batch_size: int,
    max_actors: int | None, storage: Storage | None, path: str | None,
) -> Table:  # fmt: skip
    """See `Graph.map`."""
    needed = list(dict.fromkeys([*graph.inputs, *keep]))
    if missing := [column for column in needed if column not in table.schema.names]:
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
    inputs = table.select(needed) if len(table.schema.names) > len(needed) else table
    cache = None
    if storage is not None and path:
        cache = storage, path
        identity = RunIdentity({"graph": graph.fingerprint})
        identity.claim(storage, path, f"map {name!r}", error=DataError)
    actor = ray.remote(_Mapper).options(num_cpus=cpus, num_gpus=gpus)
    start = functools.partial(actor.remote, ray.put(graph), list(keep), batch_size, cache)
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


def _beside(kept: pa.Table, outputs: pa.Table) -> pa.Table:
    if both := [name for name in kept.column_names if name in outputs.column_names]:
        raise DataError(f"keep={both}: outputs of the graph have these names: rename the columns")
    names = [*kept.column_names, *outputs.column_names]
    return pa.table([*kept.columns, *outputs.columns], names=names)


class _Mapper:
    """An actor that holds the graph; the cache has outputs by the digest of their block."""

    def __init__(
        self, graph: Graph, keep: list[str], batch_size: int, cache: tuple[Storage, str] | None
    ) -> None:
        self._keep = keep
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
        columns = _arrow.from_table(block.select(list(graph.inputs)), graph.inputs)
        for start in range(0, max(1, len(block)), self._batch_size):
            stop = min(len(block), start + self._batch_size)
            batch = {name: column[start:stop] for name, column in columns.items()}
            value = graph.run(graph.order, batch)[graph.output]
            parts.append(as_outputs(graph.output, value, stop - start))
        computed = output_columns(graph.output, concat_outputs(parts))
        outputs = pa.Table.from_batches([_arrow.to_batch(computed)])
        if self._keep:
            outputs = _beside(block.select(self._keep), outputs)
        if self._cache:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, outputs.schema) as writer:
                writer.write_table(outputs)
            storage.write_bytes(path, sink.getvalue().to_pybytes())
        return described(outputs)
