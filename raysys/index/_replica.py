"""The actor that holds one shard and answers for it."""

from __future__ import annotations

import logging
import pickle
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from raysys.cluster import raise_priority
from raysys.errors import StorageError, UnavailableError
from raysys.index._actor_names import actor, writer_name
from raysys.index._local_socket import listen
from raysys.index._metrics import ReplicaMetrics
from raysys.index._persistence import Files
from raysys.index._shard import Shard, SilentError
from raysys.index._shard_follower import HeldShard
from raysys.index._types import split_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from raysys.index._types import Settings
    from raysys.storage import Storage

_REPORT_S, _RETRY_S = 1.0, 1.0
# A change is acknowledged without a replica that does not take it, after `_writer._PATIENCE_S`;
# before that the replica, behind a link that is cut, leaves questions to others.
_SILENT_S, _JOIN_S = 3.0, 10.0
_log = logging.getLogger("raysys.index")


class Replica:
    """One of the actors that hold the same shard.

    It starts from the last snapshot and the log, and tells the writer before it answers: from
    then on no change is acknowledged that it does not hold.
    """

    def __init__(
        self, name: str, storage: Storage, path: str, version: int, shard: int, number: int
    ) -> None:
        """Load the shard, unless the snapshot is still to be built.

        Args:
            name: Of the index.
            storage: Where its folder is.
            path: Of the folder.
            version: Of the snapshot that the index begins with; if it is not there yet, `start`
                comes when it is.
            shard: Number of the shard.
            number: Of the replica.
        """
        raise_priority()
        self._name, self._shard, self._number, self._version = name, shard, number, version
        self._files = Files(storage, path)
        self._metrics = ReplicaMetrics(name, shard, number)
        self._progress = 0
        self._life = uuid.uuid4().hex
        self._heard = time.monotonic()
        self._held: HeldShard | None = None
        self._built: Shard | None = None
        self._opening = threading.Lock()
        self._was_restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._address = listen(self.query)
        self._come_back()
        threading.Thread(target=self._report, name="metrics", daemon=True).start()

    def _come_back(self) -> None:
        """Load the shard, if it is there.

        After a crash as often as it takes: Ray gives up an actor that raises.
        """
        while True:
            try:
                self._open()
                return
            except Exception:
                if not self._was_restarted:
                    raise
                _log.exception("shard %d cannot be loaded; it is tried again", self._shard)
                time.sleep(_RETRY_S)

    def _open(self) -> None:
        """Load the shard and join, once the snapshot is complete."""
        with self._opening:
            manifest = self._files.manifest()
            if self._held is None and manifest is not None and manifest.version >= self._version:
                held = HeldShard(self._files, self._shard, self._built)
                self._join(held)
                self._held, self._built = held, None

    def build(self, settings: Settings, schema: pa.Schema, pieces: Sequence[Any]) -> int:
        """Build the shard from references to its rows and write its part of the snapshot.

        Returns:
            Number of rows.
        """
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
        """Rows that `build` has put into the graph."""
        return self._progress

    def start(self) -> None:
        """Answer from now on: the snapshot is complete."""
        self._open()
        if self._held is None:
            where = self._files.storage.uri(self._files.path)
            raise StorageError(f"there is no complete snapshot below {where}")

    def address(self) -> tuple[str, str | None]:
        """The node, and where clients on it may ask without Ray's calls."""
        return ray.get_runtime_context().get_node_id(), self._address

    def query(self, question: bytes) -> bytes:
        """This shard's nearest: arguments and answer of `Shard.search`, pickled.

        Ray passes bytes on as they are, which saves a quarter of a millisecond a hop.
        """
        self._refuse_if_silent()
        return self._answer(question)

    def _answer(self, question: bytes) -> bytes:
        started = time.perf_counter()
        vectors, *others = pickle.loads(question)
        found = self._shard_held.search(vectors, *others)
        self._metrics.query(len(vectors), time.perf_counter() - started)
        return pickle.dumps(found, protocol=5)

    def exact(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """This shard's true nearest."""
        return self._shard_held.exact(vectors, k)

    def matching(self, text: str | None, limit: int) -> np.ndarray:
        """Ids of up to `limit` rows that satisfy a filter."""
        self._refuse_if_silent()
        return self._shard_held.matching(text, limit)

    def get(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, pa.Table]:
        """Rows by id."""
        self._refuse_if_silent()
        return self._shard_held.get(ids)

    def anyhow(self, method: str, *args: Any) -> Any:
        """Answer though the writer is silent: no replica of this shard hears it."""
        if method == "query":
            return self._answer(*args)
        return getattr(self._shard_held, method)(*args)

    def _refuse_if_silent(self) -> None:
        silent_s = time.monotonic() - self._heard
        if silent_s > _SILENT_S and self._shard_held.settings.replicas > 1:
            raise SilentError(
                f"replica {self._shard}.{self._number} of index {self._name!r} has not heard its "
                f"writer for {silent_s:.1f} s: ask another"
            )

    def sample(self, rows: int, seed: int) -> np.ndarray:
        """Vectors of some rows."""
        return self._shard_held.sample(rows, seed)

    def apply(self, version: int, record: bytes) -> int:
        """Apply a record of the log; tell how many rows wait beside the graph."""
        held = self._joined()
        held.apply(version, record)
        return held.shard.pending

    def catch_up(self, version: int) -> int:
        """Apply what the log holds up to a version; tell how many rows wait beside the graph."""
        held = self._joined()
        held.catch_up(version)
        return held.shard.pending

    def set_ef(self, ef: int) -> None:
        """Look at so many candidates by default."""
        shard = self._shard_held
        shard.settings = shard.settings.model_copy(update={"ef": ef})

    def snapshot(self, folder: str) -> tuple[int, int]:
        """Write this shard's part of a snapshot; tell its version and number of rows."""
        told = []

        def write(state: Any) -> None:
            self._files.write_shard(folder, self._shard, state)
            told.append((state.version, len(state.ids) - len(state.deleted)))

        self._shard_held.capture(write)
        return told[0]

    def compact(self) -> None:
        """Rebuild the graph without its tombstones now."""
        self._shard_held.compact()

    def status(self) -> dict[str, int]:
        """Counts of this shard."""
        shard = self._shard_held
        return {
            "version": shard.version,
            "rows": shard.size,
            "pending": shard.pending,
            "tombstones": shard.tombstones,
        }

    @property
    def _shard_held(self) -> Shard:
        return self._service().shard

    def _service(self) -> HeldShard:
        if self._held is None:
            raise UnavailableError(f"shard {self._shard} of index {self._name!r} is not loaded yet")
        return self._held

    def _joined(self) -> HeldShard:
        with self._opening:
            return self._service()

    def _join(self, held: HeldShard) -> None:
        """Tell the writer, then take what was acknowledged until it listened."""
        try:
            writer = actor(writer_name(self._name))
        except ValueError:  # no writer: nothing changes
            return
        join = writer.join.options(max_task_retries=-1)
        asked = time.monotonic()
        told = join.remote(self._shard, self._number, self._life)
        version, ef = ray.get(told, timeout=_JOIN_S if self._held else None)
        self._metrics.lag(version - held.shard.version)
        held.catch_up(version)
        self._heard = asked
        if ef != held.shard.settings.ef:
            held.shard.settings = held.shard.settings.model_copy(update={"ef": ef})

    def _report(self) -> None:
        """Metrics; and a word to the writer, which may have been restarted or given us up."""
        while True:
            time.sleep(_REPORT_S)
            try:
                if self._held:
                    self._metrics.state(self.status())
                    self._join(self._held)
                elif self._was_restarted:  # perhaps when the storage was away
                    self._open()
            except Exception:
                _log.exception("replica %d.%d could not report", self._shard, self._number)
