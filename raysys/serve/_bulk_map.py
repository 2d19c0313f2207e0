"""A graph over a Table: actors that come and go with the cluster, results that stay."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from raysys import cluster
from raysys.data import Lineage, Table, block_digest, described
from raysys.errors import DataError
from raysys.identity import RunIdentity
from raysys.serve._outputs import answers_of, columns_of, join

if TYPE_CHECKING:
    from raysys.data import BlockMeta
    from raysys.serve._graph import Graph
    from raysys.storage import Storage

_IN_FLIGHT = 2  # blocks of an actor: the next is there when one is done
_DEATHS = 10
_PROGRESS_S = 5.0


def map_table(
    graph: Graph,
    table: Table,
    *,
    name: str = "map",
    batch_size: int = 2048,
    max_actors: int | None = None,
    storage: Storage | None = None,
    path: str | None = None,
) -> Table:
    """Run a graph over the rows of a Table, on actors over the whole cluster.

    All nodes run in each actor, which asks for the largest of their placements. Actors are
    asked for at once, and each takes blocks as soon as the cluster has room for it. A block
    whose actor dies goes to another.

    Args:
        graph: Its inputs are columns of the Table; other columns are let be.
        table: Its blocks are the units of work.
        name: In what is said of its progress.
        batch_size: Rows of a call of the nodes.
        max_actors: At most; by default what the CPUs allow beside the head-room for tasks.
        storage: With `path`: every block's answers are written there as soon as they are done,
            and a run that goes on after an interruption does not make them again.
        path: Folder in the storage.

    Returns:
        Answers in the rows' order: a column for each of the output's, named as they are.

    Raises:
        DataError: A column is missing or does not fit, or the path holds answers of another
            graph.
    """
    if missing := [column for column in graph.inputs if column not in table.schema.names]:
        raise DataError(f"the table lacks the columns {missing}; it has {table.schema.names}")
    wanted = [node.placement for node in graph.nodes.values() if node.placement]
    cpus = max([1.0, *(place.cpus for place in wanted)])
    gpus = max([0.0, *(place.gpus for place in wanted)])
    cluster.require(f"{name}: one actor", cpus=cpus, gpus=gpus)
    if max_actors is None:
        room = cluster.limits()
        max_actors = int((room.cpus - cluster.HEADROOM_CPUS) / cpus)
        if gpus:
            max_actors = min(max_actors, int(room.gpus / gpus))
    others = set(table.schema.names) - set(graph.inputs)
    inputs = table.select(list(graph.inputs)) if others else table
    kept = None
    if storage is not None and path:
        identity = RunIdentity({"graph": graph.fingerprint})
        identity.claim(storage, path, f"map {name!r}", error=DataError)
        kept = _Kept(storage, path)
    actor = ray.remote(_Mapper).options(num_cpus=cpus, num_gpus=gpus)
    pool = _Pool(actor, (graph, batch_size, kept), name)
    return Table.from_blocks(
        pool.run(inputs, max_actors), Lineage(name, {}, (table.lineage,), graph.fingerprint)
    )


class _Pool:
    """Deals blocks out to actors."""

    def __init__(self, actor: Any, arguments: tuple[Any, ...], name: str) -> None:
        self._actor, self._name = actor, name
        graph, batch_size, kept = arguments
        self._arguments = (ray.put(graph), batch_size, kept)
        self._deaths = 0

    def run(self, table: Table, actors: int) -> list[tuple[Any, Any]]:
        """(block, meta) references, in the order of the table's blocks."""
        todo = deque(range(len(table.blocks())))
        starting = {}
        for _ in range(max(1, min(actors, len(todo)))):
            worker = self._actor.remote(*self._arguments)
            starting[worker.ready.remote()] = worker
        running: dict[Any, tuple[int, Any]] = {}
        load: dict[Any, int] = {}
        results: dict[int, tuple[Any, Any]] = {}
        said = started = time.monotonic()
        try:
            while len(results) < len(table.blocks()):
                for worker in load:
                    while todo and load[worker] < _IN_FLIGHT:
                        number = todo.popleft()
                        run = worker.run.options(num_returns=2)
                        block, meta = run.remote(table.blocks()[number])
                        running[meta] = (number, (worker, block))
                        load[worker] += 1
                (ready, *_), _rest = ray.wait([*starting, *running], num_returns=1)
                if ready in starting:
                    worker = starting.pop(ready)
                    self._result(ready)
                    load[worker] = 0
                    continue
                number, (worker, block) = running.pop(ready)
                try:
                    ray.get(ready)
                except ray.exceptions.RayActorError as error:
                    todo.appendleft(number)
                    if load.pop(worker, None) is not None:
                        self._died(error)
                        again = self._actor.remote(*self._arguments)
                        starting[again.ready.remote()] = again
                    continue
                except ray.exceptions.RayTaskError as error:
                    raise cluster.task_error_cause(error) from None
                results[number] = (block, ready)
                load[worker] -= 1
                if time.monotonic() - said > _PROGRESS_S:
                    said = time.monotonic()
                    self._say(len(results), len(table.blocks()), said - started)
        finally:
            for worker in [*load, *starting.values()]:
                ray.kill(worker)
        return [results[number] for number in range(len(table.blocks()))]

    def _result(self, ready: Any) -> None:
        try:
            ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise cluster.task_error_cause(error) from None

    def _died(self, error: Exception) -> None:
        self._deaths += 1
        print(f"{self._name}: an actor died ({type(error).__name__}), death {self._deaths} of at "
              f"most {_DEATHS}; its blocks go to others", file=sys.stderr, flush=True)  # fmt: skip
        if self._deaths >= _DEATHS:
            raise error

    def _say(self, done: int, blocks: int, seconds: float) -> None:
        print(f"{self._name}: {done} of {blocks} blocks in {seconds:.0f} s", file=sys.stderr,
              flush=True)  # fmt: skip


class _Mapper:
    """An actor that holds the graph."""

    def __init__(self, graph: Graph, batch_size: int, kept: _Kept | None) -> None:
        self._graph, self._batch_size, self._kept = graph, batch_size, kept
        graph.load(graph.order)

    def __repr__(self) -> str:  # its name in the dashboard
        return f"map:{self._graph.output}"

    def ready(self) -> None:
        """Answers when the models are loaded."""

    def run(self, block: pa.Table) -> tuple[pa.Table, BlockMeta]:
        """The answers to a block's rows."""
        from raysys.serve.protocols import _arrow

        digest = block_digest(block) if self._kept else ""
        if self._kept and (found := self._kept.read(digest)) is not None:
            return described(found)
        graph, parts = self._graph, []
        columns = _arrow.from_table(block, graph.inputs)
        for start in range(0, max(1, len(block)), self._batch_size):
            batch = {
                name: column[start : start + self._batch_size] for name, column in columns.items()
            }
            rows = len(next(iter(batch.values())))
            value = graph.run(graph.order, batch)[graph.output]
            parts.append(answers_of(graph.output, value, rows))
        answers = _arrow.to_table(columns_of(graph.output, join(parts)))
        if self._kept:
            self._kept.write(digest, answers)
        return described(answers)


class _Kept:
    """Answers under the storage root, by the digest of the block that they answer."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage, self._path = storage, path

    def read(self, digest: str) -> pa.Table | None:
        """The answers of a block, if they are there."""
        kept = self._storage.read_bytes(f"{self._path}/{digest}.arrow")
        return None if kept is None else pa.ipc.open_file(pa.BufferReader(kept)).read_all()

    def write(self, digest: str, answers: pa.Table) -> None:
        """Keep the answers of a block; the file appears whole or not at all."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, answers.schema) as writer:
            writer.write_table(answers)
        self._storage.write_bytes(f"{self._path}/{digest}.arrow", sink.getvalue().to_pybytes())
