"""The actor that serves a replica of a shard."""

from __future__ import annotations

import logging
import pickle
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from raysys.cluster import listen, raise_priority
from raysys.errors import StorageError, UnavailableError
from raysys.index._actor_names import actor, writer_name
from raysys.index._persistence import IndexFiles
from raysys.index._rows import split_rows
from raysys.index._shard import Shard
from raysys.index._shard_follower import ShardFollower
from raysys.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.index._settings import IndexSettings
    from raysys.storage import Storage

_REPORT_S, _RETRY_S = 1.0, 1.0
# A change is acknowledged without an unreachable replica after `_writer._REDUNDANT_TIMEOUT_S`;
# before that the replica, behind a broken link, leaves queries to others.
_MAX_SILENCE_S, _JOIN_TIMEOUT_S = 3.0, 10.0
_log = logging.getLogger("raysys.index")


class StaleReplicaError(UnavailableError):
    """The replica has not heard from the writer lately: others may have changes that it lacks."""


class ShardReplica:
    """A replica of a shard.

    It starts from the last snapshot and the log, and joins at the writer before it answers: from
    then on no change is acknowledged without it.
    """

    def __init__(
        self, name: str, storage: Storage, path: str, version: int, shard: int, number: int
    ) -> None:
        """Load the shard if this process is restarted; a new one does so at `start`.

        Unless the index's first snapshot, of `version`, is still to be built.
        """
        raise_priority()
        self._name, self._shard, self._number, self._version = name, shard, number, version
        self._files = IndexFiles(storage, path)
        self._tags = {"index": name, "shard": str(shard), "replica": str(number)}
        self._progress = 0
        self._incarnation = uuid.uuid4().hex
        self._last_heard = time.monotonic()
        self._follower: ShardFollower | None = None
        self._built: Shard | None = None
        self._opening = threading.Lock()
        self._was_restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._address = listen(self.query)
        while self._was_restarted:
            try:
                self._open()
                break
            except Exception:
                # Ray gives up an actor that raises.
                _log.exception("cannot load shard %d; retrying", self._shard)
                time.sleep(_RETRY_S)
        threading.Thread(target=self._report, name="metrics", daemon=True).start()

    def _open(self) -> None:
        """Load the shard and join, once the snapshot is complete."""
        with self._opening:
            manifest = self._files.manifest()
            if self._follower or manifest is None or manifest.version < self._version:
                return
            follower = ShardFollower(self._files, self._shard, self._built)
            self._join(follower)
            self._follower, self._built = follower, None

    def build(self, settings: IndexSettings, schema: pa.Schema, pieces: Sequence[Any]) -> int:
        """Build the shard from references to its rows, write its snapshot, return its size."""
        table = pa.concat_tables(ray.get(list(pieces))).combine_chunks()
        ids, vectors, attributes = split_rows(table, settings.metric)
        del table

        def progress(rows: int) -> None:
            self._progress = rows

        if len(ids):
            shard = Shard.build(settings, ids, vectors, attributes, self._version, progress)
        else:
            shard = Shard.empty(settings, schema, self._version)
        folder = f"{self._version:020d}"
        shard.capture(lambda state: self._files.write_shard(folder, self._shard, state))
        self._built = shard
        return len(ids)

    def progress(self) -> int:
        """Number of rows that `build` has inserted into the graph."""
        return self._progress

    def start(self) -> None:
        """Start to answer: the snapshot is complete."""
        self._open()
        if self._follower is None:
            raise StorageError(f"no complete snapshot below {self._files.uri}")

    def address(self) -> tuple[str, str | None]:
        """The node, and the address of the socket for clients on it."""
        return ray.get_runtime_context().get_node_id(), self._address

    def query(self, request: bytes, allow_stale: bool = False) -> bytes:
        """Pickled arguments and result of `Shard.search`: Ray passes bytes 0.25 ms faster.

        `allow_stale` where the writer may reach none of this shard's replicas.
        """
        self._check_heard(allow_stale)
        started = time.perf_counter()
        vectors, *arguments = pickle.loads(request)
        result = self._present_shard.search(vectors, *arguments)
        metrics.INDEX_QUERY_SECONDS.observe(time.perf_counter() - started, self._tags)
        metrics.INDEX_QUERIES.inc(len(vectors), self._tags)
        return pickle.dumps(result, protocol=5)

    def read(self, method: str, *args: Any, allow_stale: bool = False) -> Any:
        """Result of a reading method of `Shard`; `allow_stale` as in `query`."""
        self._check_heard(allow_stale)
        return getattr(self._present_shard, method)(*args)

    def _check_heard(self, allow_stale: bool) -> None:
        silence_s = time.monotonic() - self._last_heard
        if allow_stale or silence_s <= _MAX_SILENCE_S:
            return
        if self._present_shard.settings.replicas > 1:
            raise StaleReplicaError(
                f"replica {self._shard}.{self._number} of index {self._name!r} has not heard "
                f"from its writer for {silence_s:.1f} s: query another replica"
            )

    def apply(self, version: int, record: bytes | None = None) -> int:
        """Apply the log up to a version; return the number of rows beside the graph.

        `record` is that of the version, if it is at hand.
        """
        with self._opening:
            follower = self._service()
        follower.apply(version, record)
        return follower.shard.pending

    def set_ef_search(self, ef_search: int) -> None:
        """Set the default size of the candidate list."""
        _set_ef_search(self._present_shard, ef_search)

    def snapshot(self, folder: str) -> tuple[int, int]:
        """Write this shard's part of a snapshot; return its version and number of rows."""
        written = []

        def write(state: Any) -> None:
            self._files.write_shard(folder, self._shard, state)
            written.append((state.version, len(state.ids) - len(state.deleted)))

        self._present_shard.capture(write)
        return written[0]

    def compact(self) -> None:
        """Rebuild the graph without its tombstones now."""
        self._present_shard.compact()

    def status(self) -> dict[str, int]:
        """Counts of this shard."""
        return self._present_shard.counts()

    @property
    def _present_shard(self) -> Shard:
        return self._service().shard

    def _service(self) -> ShardFollower:
        if self._follower is None:
            raise UnavailableError(f"shard {self._shard} of index {self._name!r} is still loading")
        return self._follower

    def _join(self, follower: ShardFollower) -> None:
        """Join at the writer, then catch up with what was acknowledged before."""
        try:
            writer = actor(writer_name(self._name))
        except ValueError:  # without a writer nothing changes
            return
        join = writer.join.options(max_task_retries=-1)
        started = time.monotonic()
        reference = join.remote(self._shard, self._number, self._incarnation)
        timeout_s = _JOIN_TIMEOUT_S if self._follower else None
        version, ef_search = ray.get(reference, timeout=timeout_s)
        metrics.INDEX_LAG.set(max(0, version - follower.shard.version), self._tags)
        follower.apply(version)
        self._last_heard = started
        if ef_search != follower.shard.settings.ef_search:
            _set_ef_search(follower.shard, ef_search)

    def _report(self) -> None:
        """Update the metrics, and join again at a writer that may have restarted."""
        while True:
            time.sleep(_REPORT_S)
            try:
                if self._follower:
                    counts = self.status()
                    metrics.INDEX_ROWS.set(counts["rows"], self._tags)
                    metrics.INDEX_PENDING.set(counts["pending"], self._tags)
                    metrics.INDEX_TOMBSTONES.set(counts["tombstones"], self._tags)
                    metrics.INDEX_VERSION.set(counts["version"], self._tags)
                    self._join(self._follower)
                elif self._was_restarted:  # perhaps while the storage was unavailable
                    self._open()
            except Exception:
                _log.exception("replica %d.%d cannot report", self._shard, self._number)


def _set_ef_search(shard: Shard, ef_search: int) -> None:
    shard.settings = shard.settings.model_copy(update={"ef_search": ef_search})
