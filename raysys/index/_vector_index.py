"""The vector index as its users see it."""

from __future__ import annotations

import dataclasses
import pickle
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from raysys.cluster import task_error_cause
from raysys.errors import DataError, UnavailableError
from raysys.index import _actor_names as _names
from raysys.index import _build
from raysys.index import _recall_tuning as _tune
from raysys.index._change_record import Batch, encode
from raysys.index._local_index import LocalIndex
from raysys.index._persistence import Files, Manifest
from raysys.index._query_router import Readers
from raysys.index._shard import StaleError
from raysys.index._types import (
    Found,
    Metric,
    as_ids,
    check_attributes,
    check_queries,
    check_question,
    merge,
    padding,
    split_rows,
    vector_column,
    with_id,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data import Table
    from raysys.index._recall_tuning import Tuned
    from raysys.storage import Storage

_CHUNK_QUERIES = 512
_STALE_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A snapshot that `restore` takes; `version` names it."""

    version: int
    rows: int
    shards: int


class VectorIndex:
    """Nearest neighbours among vectors that change, spread over actors.

    Rows have an id, a vector and attributes. Each belongs to one shard; a shard is held by one
    or more replicas, actors named `index:<name>:<shard>.<replica>`, each an HNSW graph by hnswlib
    (Malkov & Yashunin, 2018). One more actor, `index:<name>`, orders the changes. They are
    detached: they outlive the job that built them, and an actor that dies is restarted and comes
    back with every acknowledged change.

    - Build it from a Table, ask it for neighbours, change it while others ask.
    - A query sees each batch of changes whole or not at all, over all shards.
    - A replica that its writer cannot reach leaves questions to the others within three seconds;
      only where none of a shard's replicas hears the writer, one that may be behind answers.
    - Changes are in a log on the storage root, flushed to disk, before they are acknowledged.
    - `snapshot` bounds that log; `restore` brings an index back, on other shards if you like.

    Example:
        >>> index = VectorIndex.build("films", table, storage)  # doctest: +SKIP
        >>> ids, distances, _ = index.query(vectors, k=10, filters="year >= 1990")
        ... # doctest: +SKIP

    Attributes:
        name: Of the index.
        settings: How it was built.
        schema: Of the attribute columns.
    """

    def __init__(self, name: str, files: Files, manifest: Manifest) -> None:
        """Reach the actors of a running index; use `connect`, `build` or `restore`."""
        self.name, self.settings, self.schema = name, manifest.settings, manifest.schema
        self._files, self._manifest = files, manifest
        shards, replicas = range(manifest.settings.shards), range(manifest.settings.replicas)
        try:
            self._writer = _names.actor(_names.writer_name(name))
            handles = {
                shard: [_names.actor(_names.replica_name(name, shard, one)) for one in replicas]
                for shard in shards
            }
        except ValueError as error:
            raise _not_there(name) from error
        self._readers = Readers(name, handles)

    def __reduce__(self) -> Any:
        return VectorIndex, (self.name, self._files, self._manifest)

    def __repr__(self) -> str:
        return f"VectorIndex({self.name!r}, {self.settings!r})"

    # --- comes and goes ---

    @classmethod
    def build(
        cls,
        name: str,
        rows: Table | pa.Table,
        storage: Storage,
        path: str | None = None,
        *,
        metric: Metric = "cosine",
        shards: int | None = None,
        replicas: int | None = None,
        **settings: Any,
    ) -> VectorIndex:
        """Build all shards at once from references, and write the first snapshot.

        Args:
            name: Unique on the cluster, without `:`; an index of that name is replaced once the
                rows have been checked.
            rows: Columns `id` (integers, each once) and `vector` (fixed-size list of float32), and
                attributes; `raysys.index.rows` makes them of arrays. Other numbers are converted.
            storage: Where snapshots and log go; every node must reach it.
            path: Their folder, `indexes/<name>` by default.
            metric: See `Settings`.
            shards: Parts that are built and searched at the same time; by default one for every
                50,000 rows, as far as there are cores.
            replicas: Of each shard; by default 2 if there is a second node, else 1.
            settings: Others of `Settings`, such as `m`, `ef_construction`, `seed`.

        Raises:
            DataError: The rows or settings cannot be used; nothing has changed.
            ResourceError: The memory that it needs is not there.
        """
        settings |= {"metric": metric, "shards": shards, "replicas": replicas}
        files = Files(storage, path or f"indexes/{name}")
        return cls(name, files, _build.build(name, rows, files, settings))

    @classmethod
    def restore(
        cls,
        name: str,
        storage: Storage,
        path: str | None = None,
        *,
        version: int | None = None,
        shards: int | None = None,
        replicas: int | None = None,
    ) -> VectorIndex:
        """Start an index from its folder, with all changes that were acknowledged.

        Args:
            name: Of the index; one that runs under it is replaced.
            storage: Where its folder is.
            path: Of the folder, `indexes/<name>` by default.
            version: Of a snapshot, see `snapshots`: the index as it was then. By default it is
                the last one and the log since.
            shards: As many as it had, by default; other numbers build it anew.
            replicas: As many as it had, by default.

        Raises:
            StorageError: There is no such snapshot.
        """
        files = Files(storage, path or f"indexes/{name}")
        return cls(name, files, _build.restore(name, files, version, shards, replicas))

    @classmethod
    def connect(cls, name: str) -> VectorIndex:
        """The running index of a name.

        Raises:
            UnavailableError: There is none on this cluster.
        """
        try:
            writer = _names.actor(_names.writer_name(name))
            describe = writer.describe.options(max_task_retries=-1)
            return cls(name, *ray.get(describe.remote()))
        except ray.exceptions.RayTaskError as error:
            raise task_error_cause(error) from None
        except (ValueError, ray.exceptions.RayActorError) as error:
            raise _not_there(name) from error

    @classmethod
    def open(cls, name: str, storage: Storage, path: str | None = None) -> VectorIndex:
        """The running index of a name; if none runs, it is started from its folder.

        Args:
            name: Of the index.
            storage: Where its folder is.
            path: Of the folder, `indexes/<name>` by default.

        Raises:
            StorageError: None runs, and there is no such folder.
        """
        try:
            return cls.connect(name)
        except UnavailableError:
            return cls.restore(name, storage, path)

    def local(self) -> LocalIndex:
        """A copy in this process that follows the index, of a single shard; no hop to ask it.

        Raises:
            DataError: The index has more than one shard.
        """
        return LocalIndex(self.name, self._files)

    def close(self) -> None:
        """End the actors; the folder stays, and `restore` starts them again."""
        _names.end(self.name)

    def retire_others(self, prefix: str) -> None:
        """Close the other indexes whose names start with `prefix`."""
        for name in _names.indexes():
            if name.startswith(prefix) and name != self.name:
                _names.end(name)

    # --- asked ---

    @property
    def size(self) -> int:
        """Number of rows."""
        return sum(one["rows"] for one in self._readers.ask("status", timeout_s=30.0).values())

    def query(
        self,
        vectors: Any,
        k: int,
        *,
        ef: int | None = None,
        filters: str | Sequence[str | None] | None = None,
        partial: bool = False,
        timeout_s: float = 30.0,
    ) -> Found:
        """The k nearest rows of each vector: one hop to each shard and back.

        Args:
            vectors: float32 `(n, dim)`, C-contiguous; other numbers and layouts are converted.
            k: Neighbours wanted.
            ef: Candidates looked at in each shard, k at least; by default what `tune` found.
            filters: A predicate over `id` and the attributes, such as `"year >= 1990"`, or one
                for each vector (None for all rows); see `raysys.index.FILTER_GRAMMAR`.
            partial: If a shard has no replica that answers, do without it and say so, instead
                of waiting for it.
            timeout_s: How long to wait for a shard that is being restored.

        Returns:
            Ids int64 `(n, k)` and distances float32 `(n, k)`, nearest first, padded with -1 and
            infinity where fewer than k rows exist or match; and the shards that are missing.

        Raises:
            DataError: Vectors or filters do not fit the index.
            UnavailableError: A shard did not answer in time.
        """
        matrix = check_queries(vectors, self.settings)
        filters = check_question(matrix, k, ef, filters)
        if len(matrix) <= _CHUNK_QUERIES:
            return self._query(matrix, k, ef, filters, partial, timeout_s)
        parts = []
        for start in range(0, len(matrix), _CHUNK_QUERIES):
            some = slice(start, start + _CHUNK_QUERIES)
            chosen = filters and filters[some]
            parts.append(self._query(matrix[some], k, ef, chosen, partial, timeout_s))
        missing = {shard for part in parts for shard in part.missing_shards}
        return Found(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.distances for part in parts]),
            tuple(sorted(missing)),
        )

    def _query(
        self, matrix: np.ndarray, k: int, ef: int | None, filters: Sequence[str | None] | None,
        partial: bool, timeout_s: float,
    ) -> Found:  # fmt: skip
        def ask(as_of: int | None = None, **which: Any) -> dict[int, Any]:
            question = pickle.dumps((matrix, k, ef, filters, as_of), protocol=5)
            answers = self._readers.ask("query", question, timeout_s=timeout_s, **which)
            return {shard: pickle.loads(answer) for shard, answer in answers.items()}

        for _ in range(_STALE_ATTEMPTS):
            try:
                found = ask(partial=partial)
            except StaleError:  # it took longer than a shard remembers
                continue
            # A batch of changes reaches one shard before another: all answer as of the lowest
            # version, which has reached them all.
            oldest = min((version for version, _, _ in found.values()), default=0)
            ahead = [shard for shard, (version, _, _) in found.items() if version > oldest]
            try:
                if ahead:
                    found |= ask(oldest, shards=ahead)
            except StaleError:
                continue
            if any(version != oldest for version, _, _ in found.values()):
                continue
            missing = tuple(sorted(set(range(self.settings.shards)) - set(found)))
            if not found:
                found[0] = 0, *padding(len(matrix), k)
            return Found(*merge([part[1:] for _, part in sorted(found.items())], k), missing)
        raise UnavailableError(
            f"index {self.name!r}: its shards did not agree on a version in {_STALE_ATTEMPTS} "
            "attempts; ask again, with fewer vectors a call"
        )

    def matching(self, filter: str | None = None, limit: int = 1000) -> np.ndarray:
        """Ids of up to `limit` rows that satisfy a filter (all by default), int64, ascending."""
        found = self._readers.ask("matching", filter, limit, timeout_s=30.0)
        return np.sort(np.concatenate(list(found.values())))[:limit]

    def get(self, ids: Any) -> pa.Table:
        """The rows among these ids that exist, in no order, as `raysys.index.rows` makes them."""
        wanted = as_ids(ids)
        tables = []
        for found, vectors, attributes in self._readers.ask("get", wanted, timeout_s=30.0).values():
            rows = with_id(found, attributes)
            tables.append(rows.add_column(1, "vector", vector_column(vectors)))
        return pa.concat_tables(tables)

    # --- changed ---

    def upsert(self, rows: pa.Table, *, timeout_s: float | None = None) -> int:
        """Add rows, and replace those whose ids are there: all of them or, after an error, none.

        Args:
            rows: As for `build`, with every attribute of the index.
            timeout_s: How long to wait for the index's writer, which may be restarted on another
                node; as long as it takes by default.

        Returns:
            The version from which on they are seen: by every query that starts now.

        Raises:
            DataError: A row cannot be used; nothing has changed.
            StorageError: The log cannot be written; nothing has changed.
            UnavailableError: The writer did not answer in time. It may take the rows yet, so
                send the same again.
        """
        ids, vectors, attributes = split_rows(rows, self.settings.metric)
        if vectors.shape[1] != self.settings.dim:
            raise DataError(
                f"the index holds vectors of {self.settings.dim} numbers; given: {vectors.shape[1]}"
            )
        attributes = check_attributes(attributes, self.schema)
        batch = Batch(ids, vectors, attributes, np.empty(0, np.int64))
        return self._commit(batch, timeout_s)

    def delete(self, ids: Any, *, timeout_s: float | None = None) -> int:
        """Delete rows; ids that are not there do not matter.

        Args:
            ids: Integers `(n,)`.
            timeout_s: As of `upsert`.

        Returns:
            The version from which on they are gone.
        """
        ended = np.unique(as_ids(ids))
        none = np.empty((0, self.settings.dim), np.float32)
        empty = self.schema.empty_table()
        return self._commit(Batch(np.empty(0, np.int64), none, empty, ended), timeout_s)

    def _commit(self, batch: Batch, timeout_s: float | None) -> int:
        token = uuid.uuid4().hex
        return self._tell("commit", token, encode(batch, token), timeout_s=timeout_s)

    def _tell(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Call the writer; again if it dies on the way, which it knows a batch's token for."""
        told = getattr(self._writer, method).options(max_task_retries=-1)
        try:
            return ray.get(told.remote(*args), timeout=timeout_s)
        except GetTimeoutError:
            raise UnavailableError(
                f"the writer of index {self.name!r} has not answered within {timeout_s:g} s, and "
                "may do it yet. It is restarted by itself: send the same again"
            ) from None
        except RayTaskError as error:
            raise task_error_cause(error) from None
        except RayActorError as error:
            raise _not_there(self.name) from error

    # --- looked after ---

    def tune(
        self, recall: float = 0.95, k: int = 10, queries: Any = None, *, rows: int = 500
    ) -> Tuned:
        """Set ef to the smallest value with which queries reach a recall.

        Args:
            recall: Share of the true k nearest that must be found, on average.
            k: Neighbours wanted.
            queries: float32 `(n, dim)`, vectors like those that will be asked for and that are
                not in the index. By default `rows` of its own vectors, each moved half-way to
                one of its ten nearest.
            rows: See `queries`.

        Raises:
            DataError: No ef reaches it; the message says how far it got. ef stays what it was.
        """
        if queries is None:
            queries = _tune.between(self, rows)
        tuned = _tune.smallest_ef(self, check_queries(queries, self.settings), recall, k)
        self._tell("set_ef", tuned.ef)
        return tuned

    def exact(self, vectors: Any, k: int) -> Found:
        """The true k nearest, by comparing with every row: to measure recall with."""
        matrix = check_queries(vectors, self.settings)
        found = self._readers.ask("exact", matrix, k, timeout_s=600.0)
        return Found(*merge([part for _, part in sorted(found.items())], k))

    def sample(self, rows: int, seed: int = 0) -> np.ndarray:
        """Vectors of about so many rows, float32 `(n, dim)`."""
        each = -(-rows // self.settings.shards)
        found = self._readers.ask("sample", each, seed, timeout_s=60.0)
        return np.concatenate([part for _, part in sorted(found.items())])

    def snapshot(self) -> int:
        """Write a snapshot while the index goes on; its version. Old ones are pruned."""
        return self._tell("snapshot")

    @staticmethod
    def snapshots(name: str, storage: Storage, path: str | None = None) -> list[Snapshot]:
        """The snapshots of an index's folder, oldest first."""
        found = Files(storage, path or f"indexes/{name}").manifests()
        return [Snapshot(one.version, one.rows, one.settings.shards) for one in found]

    def compact(self) -> None:
        """Rebuild the graphs without deleted rows now; it happens by itself, see `Settings`."""
        self._tell("compact")

    def status(self) -> dict[str, dict[str, int] | None]:
        """Version, rows, pending rows and tombstones of each replica; None: it does not answer."""
        found = self._tell("status")
        return {f"{shard}.{number}": counts for (shard, number), counts in found.items()}


def _not_there(name: str) -> UnavailableError:
    running = ", ".join(_names.indexes()) or "none"
    return UnavailableError(
        f"no index {name!r} runs on this cluster (there are: {running}). Start it with "
        "VectorIndex.build or VectorIndex.restore"
    )
