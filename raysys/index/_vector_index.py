"""`VectorIndex`, the handle of an index on the cluster."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from raysys.arguments import checked
from raysys.cluster import task_error_cause
from raysys.console import html_table, say
from raysys.errors import UnavailableError
from raysys.index import _actor_names as _names
from raysys.index import _build
from raysys.index import _query_result as _result
from raysys.index import _recall_tuning as _tuning
from raysys.index._change_record import ChangeBatch, encode
from raysys.index._local_index import LocalIndex
from raysys.index._persistence import IndexFiles, IndexSnapshot, Manifest
from raysys.index._query_result import QueryResult
from raysys.index._query_router import QueryRouter
from raysys.index._rows import as_ids, check_attributes, split_rows, with_id, with_vector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data import Table
    from raysys.index._recall_tuning import RecallTuningResult
    from raysys.index._settings import Metric
    from raysys.storage import Storage

_CHUNK_QUERIES = 512
_NO_IDS = np.empty(0, np.int64)


class VectorIndex:
    """Approximate nearest neighbours among vectors that change, sharded over actors.

    Rows have an id, a vector and attributes. Each belongs to a shard; a shard has one or more
    replicas, actors named `index:<name>:<shard>.<replica>`, each with an HNSW graph
    (Malkov & Yashunin, 2018). One more actor, `index:<name>`, orders the changes. The actors are
    detached: they outlive the job that built them, and an actor that dies is restarted with every
    acknowledged change.

    - Build it from a Table, query it, and change it while others query.
    - A query sees each batch of changes as a whole or not at all, over all shards.
    - A replica that its writer cannot reach leaves queries to the others within three seconds; a
      replica that may be behind answers only where the writer reaches no replica of its shard.
    - Changes are in a log on the storage root, flushed to disk, before they are acknowledged.
    - `snapshot` bounds the log; `restore` starts an index again, with other shards if required.

    Attributes:
        name: Name of the index.
        settings: Settings of the index when it was connected.
        schema: Schema of the attribute columns.
    """

    def __init__(self, name: str, files: IndexFiles, manifest: Manifest) -> None:
        """Connect to the actors of a running index; use `connect`, `build` or `restore`."""
        self.name, self.settings, self.schema = name, manifest.settings, manifest.schema
        self._files, self._manifest = files, manifest
        try:
            self._writer = _names.actor(_names.writer_name(name))
            handles = {
                shard: [
                    _names.actor(_names.replica_name(name, shard, number))
                    for number in range(self.settings.replicas)
                ]
                for shard in range(self.settings.shards)
            }
        except ValueError as error:
            raise _not_running(name) from error
        self._router = QueryRouter(name, handles)

    def __reduce__(self) -> Any:
        return VectorIndex, (self.name, self._files, self._manifest)

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value}" for name, value in self._facts().items())
        return f"VectorIndex({self.name!r}, {facts})"

    def _repr_html_(self) -> str:
        return html_table(["", ""], self._facts().items(), f"VectorIndex {self.name}")

    def _facts(self) -> dict[str, Any]:
        facts = self.settings.model_dump(include={"metric", "dim", "shards", "replicas"})
        attributes = ", ".join(f"{field.name}: {field.type}" for field in self.schema)
        return {**facts, "attributes": f"[{attributes}]"}

    # --- lifecycle ---

    @classmethod
    @checked
    def build(
        cls, name: str, rows: Table | pa.Table, storage: Storage, path: str | None = None, *,
        metric: Metric = "cosine", shards: int | None = None, replicas: int | None = None,
        **settings: Any,
    ) -> VectorIndex:  # fmt: skip
        """Build all shards in parallel and write the first snapshot.

        Args:
            name: Unique name on the cluster, without `:`; an index of the same name is replaced
                after the rows are validated.
            rows: Columns `id` (unique integers) and `vector` (fixed-size list of float32), and
                attributes, see `raysys.index.vector_table`. Other numbers are converted.
            storage: Storage of snapshots and log, reachable from every node.
            path: Path of their folder, `indexes/<name>` by default.
            metric: See `IndexSettings`.
            shards: Partitions that are built and searched in parallel; by default one per 50,000
                rows, up to the number of cores.
            replicas: Replicas per shard; by default 2 on a cluster of several nodes, else 1.
            settings: Further `IndexSettings`, such as `M`, `ef_construction`, `seed`.

        Raises:
            DataError: The rows or settings are invalid; nothing changed.
            ResourceError: The cluster lacks the memory.
        """
        settings |= {"metric": metric, "shards": shards, "replicas": replicas}
        files = _files(name, storage, path)
        return cls(name, files, _build.build(name, rows, files, settings))

    @classmethod
    @checked
    def restore(
        cls, name: str, storage: Storage, path: str | None = None, *,
        version: int | None = None, shards: int | None = None, replicas: int | None = None,
    ) -> VectorIndex:  # fmt: skip
        """Start an index from its folder, with all acknowledged changes.

        Args:
            name: Name of the index; a running index of the same name is replaced.
            storage: Storage of its folder.
            path: Path of the folder, `indexes/<name>` by default.
            version: Version of a snapshot, see `snapshots`. By default the last one and the log
                since.
            shards: Number of shards; the present one by default, another rebuilds the index.
            replicas: Replicas per shard; the present number by default.

        Raises:
            StorageError: The snapshot does not exist, a file is damaged, or the log is lost; the
                message has the way out.
        """
        files = _files(name, storage, path)
        return cls(name, files, _build.restore(name, files, version, shards, replicas))

    @classmethod
    @checked
    def connect(cls, name: str) -> VectorIndex:
        """Connect to a running index.

        Raises:
            UnavailableError: The index does not run on this cluster.
        """
        try:
            writer = _names.actor(_names.writer_name(name))
            describe = writer.describe.options(max_task_retries=-1)
            return cls(name, *ray.get(describe.remote()))
        except RayTaskError as error:
            raise task_error_cause(error) from None
        except (ValueError, RayActorError) as error:
            raise _not_running(name) from error

    @classmethod
    @checked
    def open(cls, name: str, storage: Storage, path: str | None = None) -> VectorIndex:
        """Connect to a running index, or `restore` it from its folder.

        Raises:
            StorageError: The index does not run, and the folder does not exist.
        """
        try:
            index = cls.connect(name)
        except UnavailableError:
            return cls.restore(name, storage, path)
        _names.add_user(name)
        return index

    def local(self) -> LocalIndex:
        """A copy of a single-shard index in this process that follows the index, without hops.

        Raises:
            DataError: The index has more than one shard.
        """
        return LocalIndex(self.name, self._files)

    def close(self) -> None:
        """End the actors; the folder remains, and `restore` starts them again."""
        _names.end(self.name)

    def close_others(self, prefix: str) -> None:
        """Close the other indexes with names that start with `prefix`.

        Not those that another job has built, restored or opened, while it runs.
        """
        for name in _names.indexes():
            if name.startswith(prefix) and name != self.name:
                if jobs := _names.other_users(name):
                    say(f"index {name} is not closed: job {', '.join(sorted(jobs))} uses it")
                else:
                    _names.end(name)

    # --- queries ---

    @property
    def size(self) -> int:
        """Number of rows; a call to every shard."""
        counts = self._router.ask("counts", timeout_s=30.0).values()
        return sum(shard["rows"] for shard in counts)

    def query(
        self, vectors: Any, k: int, *, ef_search: int | None = None,
        filters: str | Sequence[str | None] | None = None, allow_partial: bool = False,
        timeout_s: float = 30.0,
    ) -> QueryResult:  # fmt: skip
        """The k nearest rows of each vector, in one round trip to each shard.

        Args:
            vectors: float32 `(n, dim)`, C-contiguous; other numbers and layouts are converted.
            k: Number of neighbours.
            ef_search: Size of the candidate list in each shard, at least k; by default the value
                set by `tune`.
            filters: A predicate over `id` and the attributes, such as `"year >= 1990"`, or one
                for each vector (None for all rows); see `raysys.index.FILTER_GRAMMAR`.
            allow_partial: Leave out and report a shard without a replica that answers, instead of
                waiting for it.
            timeout_s: Timeout for a shard that is being restored.

        Raises:
            DataError: Vectors or filters do not fit the index.
            UnavailableError: A shard did not answer in time.
        """
        matrix = _result.check_queries(vectors, self.settings)
        filters = _result.check_query_arguments(matrix, k, ef_search, filters)
        parts = []
        for start in range(0, max(1, len(matrix)), _CHUNK_QUERIES):
            chunk = slice(start, start + _CHUNK_QUERIES)
            question = matrix[chunk], k, ef_search, filters and filters[chunk]
            parts.append(self._router.query(*question, allow_partial, timeout_s))
        if len(parts) == 1:
            return parts[0]
        ids, distances, *shards = zip(*parts, strict=True)
        missing, stale = (tuple(sorted(set[int]().union(*numbers))) for numbers in shards)
        return QueryResult(np.concatenate(ids), np.concatenate(distances), missing, stale)

    def matching(self, filter: str | None = None, limit: int = 1000) -> np.ndarray:
        """Ids of up to `limit` rows that satisfy a filter (all by default), int64, ascending."""
        ids = self._router.ask("matching", filter, limit, timeout_s=30.0)
        return np.sort(np.concatenate(list(ids.values())))[:limit]

    def get(self, ids: Any) -> pa.Table:
        """The existing rows among these ids, unordered, with columns `id`, `vector`, attributes."""
        answers = self._router.ask("get", as_ids(ids), timeout_s=30.0).values()
        tables = [
            with_vector(with_id(keys, columns), vectors) for keys, vectors, columns in answers
        ]
        return pa.concat_tables(tables)

    def exact(self, vectors: Any, k: int) -> QueryResult:
        """The true k nearest, by comparison with every row: the reference of recall."""
        matrix = _result.check_queries(vectors, self.settings)
        parts = self._router.ask("exact", matrix, k, timeout_s=600.0)
        return QueryResult(*_result.merge([part for _, part in sorted(parts.items())], k))

    def sample(self, rows: int, seed: int = 0) -> np.ndarray:
        """Vectors of about `rows` random rows, float32 `(n, dim)`."""
        per_shard = -(-rows // self.settings.shards)
        parts = self._router.ask("sample", per_shard, seed, timeout_s=60.0)
        return np.concatenate([part for _, part in sorted(parts.items())])

    # --- changes ---

    @checked
    def upsert(self, rows: pa.Table, *, timeout_s: float | None = None) -> int:
        """Add rows and replace those of the same ids: all of them or, after an error, none.

        Args:
            rows: As for `build`, with every attribute of the index.
            timeout_s: Timeout for the index's writer, which may be restarting on another node;
                unlimited by default.

        Returns:
            The version from which on every query that starts sees the rows.

        Raises:
            DataError: A row is invalid; nothing changed.
            StorageError: The log cannot be written; nothing changed.
            UnavailableError: The writer did not answer in time. It may still apply the rows, so
                send the same again.
        """
        ids, vectors, attributes = split_rows(rows, self.settings.metric)
        _result.check_dimension(vectors, self.settings)
        attributes = check_attributes(attributes, self.schema)
        return self._commit(ChangeBatch(ids, vectors, attributes, _NO_IDS), timeout_s)

    def delete(self, ids: Any, *, timeout_s: float | None = None) -> int:
        """Delete rows; unknown ids are ignored.

        Args:
            ids: Integers `(n,)`.
            timeout_s: As for `upsert`.

        Returns:
            The version from which on the rows are gone.
        """
        deleted = np.unique(as_ids(ids))
        vectors = np.empty((0, self.settings.dim), np.float32)
        attributes = self.schema.empty_table()
        return self._commit(ChangeBatch(_NO_IDS, vectors, attributes, deleted), timeout_s)

    def _commit(self, batch: ChangeBatch, timeout_s: float | None) -> int:
        token = uuid.uuid4().hex
        return self._call_writer("commit", token, encode(batch, token), timeout_s=timeout_s)

    def _call_writer(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Call the writer, again if it dies meanwhile: it recognizes a batch by its token."""
        call = getattr(self._writer, method).options(max_task_retries=-1)
        try:
            return ray.get(call.remote(*args), timeout=timeout_s)
        except GetTimeoutError:
            raise UnavailableError(
                f"the writer of index {self.name!r} did not answer within {timeout_s:g} s, and "
                "may still apply the change. It restarts automatically: send the same again"
            ) from None
        except RayTaskError as error:
            raise task_error_cause(error) from None
        except RayActorError as error:
            raise _not_running(self.name) from error

    # --- maintenance ---

    def tune(
        self, recall: float = 0.95, k: int = 10, queries: Any = None, *, sample_size: int = 500
    ) -> RecallTuningResult:
        """Set `ef_search` to the smallest value with which queries reach a recall.

        Args:
            recall: Share of the true k nearest to find, on average.
            k: Number of neighbours.
            queries: float32 `(n, dim)`, vectors similar to future queries that are not in the
                index. By default `sample_size` of its own vectors, each moved half-way to one of
                its ten nearest.
            sample_size: See `queries`.

        Raises:
            DataError: The recall is out of reach; the message has the best one. `ef_search` is
                unchanged.
        """
        if queries is None:
            queries = _tuning.sample_queries(self, sample_size)
        queries = _result.check_queries(queries, self.settings)
        result = _tuning.smallest_ef_search(self, queries, recall, k)
        self._call_writer("set_ef_search", result.ef_search)
        return result

    def snapshot(self) -> int:
        """Write a snapshot while changes continue; return its version. Old ones are pruned.

        A log that was lost begins again from it.
        """
        return self._call_writer("snapshot")

    @staticmethod
    @checked
    def snapshots(name: str, storage: Storage, path: str | None = None) -> list[IndexSnapshot]:
        """The snapshots of an index's folder, oldest first."""
        manifests = _files(name, storage, path).manifests()
        return [IndexSnapshot(item.version, item.rows, item.settings.shards) for item in manifests]

    def compact(self) -> None:
        """Rebuild the graphs without deleted rows; automatic at `max_tombstone_ratio`."""
        self._call_writer("compact")

    def status(self) -> dict[str, dict[str, int] | None]:
        """Version, rows, pending rows and tombstones of each replica; None if it is down."""
        counts = self._call_writer("status")
        return {f"{shard}.{number}": value for (shard, number), value in counts.items()}


def _files(name: str, storage: Storage, path: str | None) -> IndexFiles:
    return IndexFiles(storage, path or f"indexes/{name}")


def _not_running(name: str) -> UnavailableError:
    running = ", ".join(_names.indexes()) or "none"
    return UnavailableError(
        f"index {name!r} is not running on this cluster (running: {running}). Start it with "
        "VectorIndex.build or VectorIndex.restore"
    )
