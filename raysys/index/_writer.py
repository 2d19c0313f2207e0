"""The actor that orders an index's changes and makes them durable."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError

from raysys.cluster import raise_priority
from raysys.errors import StorageError, UnavailableError
from raysys.index._actor_names import actor, replica_name
from raysys.index._persistence import IndexFiles, Manifest
from raysys.index._recent_changes import RecentChanges
from raysys.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.storage import Storage

_CALL_TIMEOUT_S = 60.0
# Timeout of a replica whose shard has another live replica, plus the time that a slow link takes
# for the record; by then the replica leaves queries to the other, see `_replica`.
_REDUNDANT_TIMEOUT_S, _BYTES_PER_S = 3.5, 10e6
_RETRY_S = 1.0
_OPEN_TIMEOUT_S = 30.0
_REPORT_S, _MAX_SILENCE_S = 2.0, 8.0
_ATTEMPTS = 2
# Rows outside the graph are compared with every query: beyond so many, writers wait for merging.
_MAX_PENDING_ROWS, _WAIT_S_PER_ROW, _MAX_WAIT_S = 20_000, 2e-4, 5.0
_log = logging.getLogger("raysys.index")


class IndexWriter:
    """Sequence of changes: written to the log, sent to every replica, then acknowledged.

    Batches that wait while a record is written are joined into the next record. A change is
    visible to readers only after it is in the log, and acknowledged only when each live replica
    has it; a replica that fails is left out until it has caught up and joins again. A client
    whose call was interrupted sends its batch again under the same token and receives the
    version that the batch already has.
    """

    def __init__(self, name: str, storage: Storage, path: str, version: int) -> None:
        """Read the folder, unless the snapshot of the version is still to be written."""
        raise_priority()
        self._name, self._files, self._first = name, IndexFiles(storage, path), version
        self._live: set[tuple[int, int]] = set()
        # The process of a replica that joined last: a failure may be of the one before.
        self._incarnations: dict[tuple[int, int], str] = {}
        self._last_heard: dict[tuple[int, int], float] = {}
        self._waiting: list[tuple[bytes, asyncio.Future[int]]] = []
        self._underway: dict[str, asyncio.Future[int]] = {}
        self._committing: asyncio.Task[None] | None = None
        self._recovering, self._is_recovered = asyncio.Lock(), False
        self._snapshotting, self._describing = asyncio.Lock(), asyncio.Lock()
        self._is_stopped = False
        self._news = asyncio.Condition()
        self._is_open = asyncio.Event()
        self._failure = "it is still being built"  # why the index is not open
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self._try_open()  # a new one opens at `start`, which can raise
        threading.Thread(target=self._report, name="metrics", daemon=True).start()

    def _report(self) -> None:
        """Update the metrics: replicas join again every second."""
        while True:
            time.sleep(_REPORT_S)
            if self._is_open.is_set():
                settings, since = self._manifest.settings, time.monotonic() - _MAX_SILENCE_S
                ready = [key[0] for key, heard in [*self._last_heard.items()] if heard > since]
                for shard in range(settings.shards):
                    tags = {"index": self._name, "shard": str(shard)}
                    metrics.INDEX_REPLICAS.set(ready.count(shard), tags)
                    metrics.INDEX_REPLICAS_DESIRED.set(settings.replicas, tags)

    def _open(self) -> None:
        manifest = self._files.manifest()
        if manifest is not None and manifest.version >= self._first:
            self._files.drop_cut_off_record()
            self._load(manifest)
            self._is_open.set()

    async def _opened(self) -> None:
        """Wait until the snapshot is complete; after a crash, until the folder is readable."""
        while not self._is_open.is_set():
            try:
                await asyncio.wait_for(self._is_open.wait(), _RETRY_S)
            except TimeoutError:
                self._try_open()

    def _try_open(self) -> None:
        """Open, if the folder is readable; Ray would give up an actor that raises."""
        try:
            self._open()
        except Exception as error:
            self._failure = str(error)
            _log.exception("cannot read the folder of index %s", self._name)

    async def start(self) -> None:
        """Accept changes: the snapshot is complete."""
        if not self._is_open.is_set():
            self._open()
        if not self._is_open.is_set():
            raise StorageError(f"no complete snapshot below {self._files.uri}")

    def _load(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._version = manifest.version
        self._recent = RecentChanges()
        last = min(manifest.shard_versions)
        for version in self._files.log_versions():
            # Also those before the snapshot: an unacknowledged client may send its batch again.
            try:
                record = self._files.record(version)
            except StorageError as error:
                if version > last:
                    raise
                _log.warning("the snapshot has what is lost: %s", error)
                continue
            if version == last + 1:
                self._recent.start_log()
            if record is not None:
                self._add(version, record)
        settings = manifest.settings
        self._replicas = {
            (shard, number): actor(replica_name(self._name, shard, number))
            for shard in range(settings.shards)
            for number in range(settings.replicas)
        }
        self._live = set(self._replicas)
        self._last_heard = dict.fromkeys(self._replicas, time.monotonic())

    def _add(self, version: int, record: bytes) -> None:
        self._version = max(self._version, version)
        self._recent.add(version, record)

    async def describe(self) -> tuple[IndexFiles, Manifest]:
        """The folder of the index, and the manifest of its last snapshot."""
        try:
            await asyncio.wait_for(self._opened(), _OPEN_TIMEOUT_S)
        except TimeoutError:
            raise UnavailableError(
                f"index {self._name!r} is not open yet, try again later: {self._failure}"
            ) from None
        return self._files, self._manifest

    async def commit(self, token: str, record: bytes) -> int:
        """Apply an encoded batch; return its version, once it is durable and visible."""
        await self._opened()
        async with self._recovering:
            if not self._is_recovered:
                # A writer that died may have sent its last record to some replicas only.
                await self._broadcast(self._version)
                self._is_recovered = True
        done = self._underway.get(token)
        if done is None:
            version = self._recent.version_of(token)
            if version is not None:
                return version
            if self._is_stopped:
                raise UnavailableError(f"index {self._name!r} is closing: changes are refused")
            done = asyncio.get_running_loop().create_future()
            self._underway[token] = done
            done.add_done_callback(lambda _: self._underway.pop(token, None))
            self._waiting.append((record, done))
            if self._committing is None:
                self._committing = asyncio.create_task(self._commit_all())
        return await asyncio.shield(done)

    async def stop(self) -> None:
        """Finish the changes under way and refuse further ones: the next writer reads the log."""
        self._is_stopped = True
        if self._committing is not None:
            await asyncio.shield(self._committing)

    async def join(self, shard: int, number: int, incarnation: str) -> tuple[int, int]:
        """Count a replica as live; return the version to reach before it answers, and `ef_search`.

        `incarnation` identifies the replica's process.
        """
        await self._opened()
        self._live.add((shard, number))
        self._last_heard[shard, number] = time.monotonic()
        self._incarnations[shard, number] = incarnation
        return self._version, self._manifest.settings.ef_search

    async def changes(self, after: int, timeout_s: float) -> list[tuple[int, bytes]] | None:
        """The records after a version; waits for one. None: too old, read the folder."""
        await self._opened()
        if self._version <= after:
            async with self._news:
                try:
                    await asyncio.wait_for(self._news.wait(), timeout_s)
                except TimeoutError:
                    return []
        return self._recent.after(after)

    async def set_ef_search(self, ef_search: int) -> None:
        """Set the default size of the candidate list, which survives a restart."""
        await self._opened()
        async with self._describing:
            settings = self._manifest.settings.model_copy(update={"ef_search": ef_search})
            await self._describe(settings=settings)
        await self._call_all("set_ef_search", ef_search)

    async def compact(self) -> None:
        """Rebuild every replica's graph without its tombstones."""
        await self._opened()
        await self._call_all("compact", timeout_s=None)

    async def snapshot(self) -> int:
        """Write a snapshot while changes continue; return the version that it restores."""
        await self._opened()
        async with self._snapshotting:
            if self._manifest.version == self._version:
                await asyncio.to_thread(self._files.start_log)
                return self._version
            folder, shards = f"{self._version:020d}", self._manifest.settings.shards
            written = await asyncio.gather(
                *(self._snapshot_shard(folder, shard) for shard in range(shards))
            )
            # A replica that dies now may have written; only the manifest completes a snapshot.
            async with self._describing:
                await self._describe(
                    folder=folder,
                    version=max(version for version, _ in written),
                    shard_versions=tuple(version for version, _ in written),
                    rows=sum(rows for _, rows in written),
                )
            self._recent.start_log()
            await asyncio.to_thread(self._files.start_log)
            await asyncio.to_thread(self._files.prune, self._manifest.settings.keep_snapshots)
            return self._manifest.version

    async def status(self) -> dict[tuple[int, int], dict[str, int] | None]:
        """Counts of each replica, None for a replica that does not answer."""
        await self._opened()
        counts = await asyncio.gather(
            *(self._call(key, "status", timeout_s=5.0) for key in self._replicas),
            return_exceptions=True,
        )
        return {
            key: None if isinstance(value, BaseException) else value
            for key, value in zip(self._replicas, counts, strict=True)
        }

    # --- commits ---

    async def _commit_all(self) -> None:
        try:
            while self._waiting:
                batches, self._waiting = self._waiting, []
                record = b"".join(record for record, _ in batches)
                await self._commit(record, [done for _, done in batches])
        finally:
            self._committing = None

    async def _commit(self, record: bytes, waiting: Sequence[asyncio.Future[int]]) -> None:
        version = self._version + 1
        try:
            await asyncio.to_thread(self._write, version, record)
        except Exception as error:
            _log.exception("cannot write a batch of changes to the log")
            for done in waiting:
                done.set_exception(
                    StorageError(f"cannot write the log of the index, nothing changed: {error}")
                )
            return
        self._add(version, record)  # from here on a joining replica must have it
        pending = await self._broadcast(version, record)
        metrics.INDEX_CHANGES.inc(1, {"index": self._name})
        for done in waiting:
            done.set_result(version)
        async with self._news:
            self._news.notify_all()
        await self._throttle(pending)

    def _write(self, version: int, record: bytes) -> None:
        try:
            self._files.write_record(version, record)
        except FileExistsError:
            # This process was cut off and another has replaced it: its state is outdated, and
            # its clients must call the other. If it is the only one, it restarts from the log.
            _log.error("index %s: version %d was written by another writer; exiting",
                       self._name, version)  # fmt: skip
            os._exit(1)

    async def _broadcast(self, version: int, record: bytes | None = None) -> int:
        """Bring all live replicas to a version; return the maximum of their pending rows."""
        pending = await asyncio.gather(
            *(self._deliver(key, version, record) for key in sorted(self._live))
        )
        return max(pending, default=0)

    async def _deliver(self, key: tuple[int, int], version: int, record: bytes | None) -> int:
        """Bring a replica to a version; on failure it is left out until it joins again.

        Ray reports a dead process only a second later, when its successor may have joined: that
        one has read the log and must not be left out. A replica that was unreachable for a moment
        is called again.
        """
        failure: Exception | None = None
        for _ in range(_ATTEMPTS):
            incarnation = self._incarnations.get(key)
            try:
                if self._is_redundant(key):
                    timeout_s = _REDUNDANT_TIMEOUT_S + len(record or b"") / _BYTES_PER_S
                    try:
                        return await self._call(key, "apply", version, record, timeout_s=timeout_s)
                    except TimeoutError:
                        if self._is_redundant(key):
                            raise
                return await self._call(key, "apply", version, record)
            except RayActorError as error:
                failure = error
                if self._incarnations.get(key) != incarnation:
                    return 0
            except Exception as error:
                # It is alive, and would answer without this change.
                failure = error
                ray.kill(self._replicas[key], no_restart=False)
                break
        self._live.discard(key)
        _log.warning("replica %d.%d is left out until it joins again (%r)", *key, failure)
        return 0

    def _is_redundant(self, key: tuple[int, int]) -> bool:
        """Whether another live replica holds the same shard."""
        return any(live[0] == key[0] and live != key for live in self._live)

    async def _throttle(self, pending: int) -> None:
        if pending > _MAX_PENDING_ROWS:
            await asyncio.sleep(min(_MAX_WAIT_S, (pending - _MAX_PENDING_ROWS) * _WAIT_S_PER_ROW))
        if self._recent.needs_snapshot(self._manifest.settings.snapshot_after_bytes):
            self._recent.start_log()
            self._background = asyncio.create_task(self._try_snapshot())

    async def _try_snapshot(self) -> None:
        try:
            await self.snapshot()
        except Exception:
            _log.exception("snapshot failed; the log has all changes, the next snapshot follows")

    async def _snapshot_shard(self, folder: str, shard: int) -> tuple[int, int]:
        last: BaseException | None = None
        for key in sorted(self._live):
            if key[0] == shard:
                try:
                    return await self._call(key, "snapshot", folder, timeout_s=None)
                except Exception as error:
                    last = error
        raise StorageError(f"no replica of shard {shard} can write a snapshot") from last

    async def _call_all(self, method: str, *args: Any, timeout_s: float | None = 60.0) -> None:
        results = await asyncio.gather(
            *(self._call(key, method, *args, timeout_s=timeout_s) for key in sorted(self._live)),
            return_exceptions=True,
        )
        for result in results:
            # A replica that died receives the setting when it joins again, or needs no call.
            if isinstance(result, BaseException) and not isinstance(result, RayActorError):
                raise result

    async def _describe(self, **changed: Any) -> None:
        """Change the manifest, on storage first."""
        manifest = dataclasses.replace(self._manifest, **changed)
        await asyncio.to_thread(self._files.commit, manifest)
        self._manifest = manifest

    async def _call(
        self, key: tuple[int, int], method: str, *args: Any,
        timeout_s: float | None = _CALL_TIMEOUT_S,
    ) -> Any:  # fmt: skip
        reference = getattr(self._replicas[key], method).remote(*args)
        return await asyncio.wait_for(asyncio.wrap_future(reference.future()), timeout_s)
