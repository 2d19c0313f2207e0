"""A vector index over shard actors that build, answer and come back from their snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.errors import DataError
from raysys.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ray.actor import ActorHandle

    from raysys.data import Table

NAMESPACE = "raysys"
_FILE = "shard.hnsw"
_EF = 64


@dataclass(frozen=True)
class VectorIndex:
    """An index of vectors by inner product, spread over shard actors.

    Graph: hierarchical navigable small worlds (Malkov & Yashunin, 2018), by hnswlib. A row
    belongs to the shard `id % shards`. The actors are detached and named `<name>:<shard>`:
    they outlive the job that built them, and an actor that dies is restarted by Ray and
    loads its shard from the snapshot.

    Attributes:
        name: Of the index; part of the actors' names.
        shards: Handles of the shard actors.
        size: Number of vectors.
    """

    name: str
    shards: Sequence[ActorHandle]
    size: int

    @classmethod
    def build(
        cls,
        name: str,
        table: Table,
        storage: Storage,
        path: str,
        *,
        shards: int = 2,
        m: int = 16,
        ef_construction: int = 200,
        seed: int = 0,
    ) -> VectorIndex:
        """Build all shards at once from references, and write their snapshots.

        Args:
            name: Unique on the cluster; an index of that name is replaced.
            table: Columns `id` (int64) and `vector` (list of float32, one length).
            storage: Where snapshots go.
            path: Storage path of the snapshot, one folder a shard.
            shards: Number of actors.
            m: Links a node of the graph keeps.
            ef_construction: Candidates looked at for each insertion.
            seed: Of the graph's random levels.

        Raises:
            DataError: The table has no rows, or columns of another type.
        """
        import pyarrow as pa
        import ray

        given = {field.name: field.type for field in table.schema}
        vector = given.get("vector")
        if given.get("id") != pa.int64() or not (
            vector and pa.types.is_fixed_size_list(vector) and vector.value_type == pa.float32()
        ):
            raise DataError(
                f"an index is built from columns `id` (int64) and `vector` (fixed-size list of "
                f"float32); given: {given}. Cast them before the build"
            )
        if table.rows == 0:
            raise DataError("an index is built from at least one vector; the table has no rows")
        actor = ray.remote(Shard)
        handles = []
        for number in range(shards):
            actor_name = f"{name}:{number}"
            _kill(actor_name)
            options = actor.options(
                name=actor_name,
                namespace=NAMESPACE,
                lifetime="detached",
                max_restarts=-1,
                max_task_retries=-1,
                num_cpus=0.1,
            )
            handles.append(options.remote(storage.root, f"{path}/{number}"))
        sizes = ray.get(
            [
                shard.build.remote(table, number, shards, m, ef_construction, seed)
                for number, shard in enumerate(handles)
            ]
        )
        return cls(name, tuple(handles), sum(sizes))

    @classmethod
    def connect(cls, name: str, shards: int) -> VectorIndex:
        """The index that another process built under this name."""
        import ray

        handles = [
            ray.get_actor(f"{name}:{number}", namespace=NAMESPACE) for number in range(shards)
        ]
        return cls(name, tuple(handles), sum(ray.get([shard.size.remote() for shard in handles])))

    def query(
        self, vectors: np.ndarray, k: int, ef: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of each vector, over all shards: one hop to each and back.

        Args:
            vectors: float32 `(n, dim)`, C-contiguous.
            k: Neighbours wanted; at most `size` come back.
            ef: Candidates looked at in each shard; at least k. None looks at 64 or more: with
                one alone, the search for the nearest often ends beside it.

        Returns:
            Ids int64 `(n, min(k, size))` and inner products float32 of the same shape, best
            first.
        """
        import ray

        found = ray.get([shard.query.remote(vectors, k, ef) for shard in self.shards])
        ids = np.concatenate([part[0] for part in found], axis=1)
        scores = np.concatenate([part[1] for part in found], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def retire_others(self, prefix: str) -> None:
        """End the actors of other indexes whose names start with `prefix`."""
        from ray.util import list_named_actors

        mine = {f"{self.name}:{number}" for number in range(len(self.shards))}
        for actor in list_named_actors(all_namespaces=True):
            name = actor["name"]
            if actor["namespace"] == NAMESPACE and name.startswith(prefix) and name not in mine:
                _kill(name)

    def close(self) -> None:
        """End the actors; the snapshot stays."""
        for number in range(len(self.shards)):
            _kill(f"{self.name}:{number}")


class Shard:
    """One shard, in an actor of its own."""

    def __init__(self, root: str, path: str) -> None:
        """Start empty, or from the snapshot when the actor was restarted."""
        self._storage, self._path = Storage(root), path
        self._graph: Any = None
        if self._storage.exists(path):
            self._load()

    def build(
        self, table: Table, shard: int, shards: int, m: int, ef_construction: int, seed: int
    ) -> int:
        """Build from this shard's rows of the table, write the snapshot, return the size."""
        import hnswlib

        rows = table.arrow()
        ids = rows["id"].to_numpy()
        column = rows["vector"].combine_chunks()
        vectors = column.flatten().to_numpy().reshape(len(ids), -1)
        mine = ids % shards == shard
        graph = hnswlib.Index(space="ip", dim=vectors.shape[1])
        graph.init_index(
            max(1, int(mine.sum())), M=m, ef_construction=ef_construction, random_seed=seed
        )
        # One thread: the graph that several build differs from run to run.
        if mine.any():
            graph.add_items(vectors[mine], ids[mine], num_threads=1)
        with self._storage.new_dir(self._path) as folder:
            graph.save_index(str(folder / _FILE))
            (folder / "dim").write_text(str(vectors.shape[1]))
        self._graph = graph
        return int(mine.sum())

    def size(self) -> int:
        """Number of vectors held."""
        return int(self._graph.element_count)

    def query(self, vectors: np.ndarray, k: int, ef: int | None) -> tuple[np.ndarray, np.ndarray]:
        """This shard's nearest: ids and inner products `(n, min(k, size))`."""
        k = min(k, self.size())
        if k == 0:
            return np.empty((len(vectors), 0), np.int64), np.empty((len(vectors), 0), np.float32)
        self._graph.set_ef(max(k, ef or _EF))
        try:
            ids, distances = self._graph.knn_query(vectors, k=k, num_threads=1)
        except RuntimeError:
            # By inner product some vectors may be nobody's neighbour; when k is near the size
            # the graph then reaches fewer than k.
            return self._exact(vectors, k)
        return ids.astype(np.int64), 1.0 - distances

    def _exact(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array(self._graph.get_ids_list(), np.int64)
        scores = vectors @ np.asarray(self._graph.get_items(ids), np.float32).T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return ids[order], np.take_along_axis(scores, order, axis=1)

    def _load(self) -> None:
        import hnswlib

        folder = self._storage.fetch(self._path)
        self._graph = hnswlib.Index(space="ip", dim=int((folder / "dim").read_text()))
        self._graph.load_index(str(folder / _FILE))


def _kill(actor_name: str) -> None:
    import ray

    try:
        ray.kill(ray.get_actor(actor_name, namespace=NAMESPACE))
    except ValueError:
        return  # there is none
