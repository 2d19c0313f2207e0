"""The actor that orders an index's changes and makes them durable."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import ray

from raysys.cluster import raise_priority
from raysys.errors import StorageError, UnavailableError
from raysys.index import _change_record as _record
from raysys.index._actor_names import actor, replica_name
from raysys.index._metrics import WriterMetrics
from raysys.index._persistence import Files, Manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.storage import Storage

_PUSH_TIMEOUT_S = 60.0
# A replica that has a second beside it is waited for as long as this, and a record is given as
# long as a slow link takes: the replica has then left questions to the other, see `_replica`.
_PATIENCE_S, _BYTES_PER_S = 3.5, 10e6
_RETRY_S = 1.0
_OPEN_TIMEOUT_S = 30.0
_REPORT_S, _SILENT_S = 2.0, 8.0
_ATTEMPTS = 2
_REMEMBERED_TOKENS = 100_000
_REMEMBERED_BYTES = 64 << 20
_SNAPSHOT_AFTER_RECORDS = 10_000
# Rows beside the graph are compared with every query: beyond so many, writers wait for merging.
_PENDING_ROWS, _WAIT_S_PER_ROW, _MAX_WAIT_S = 20_000, 2e-4, 5.0
_log = logging.getLogger("raysys.index")


class Writer:
    """Takes changes one after the other: into the log, then to every replica, then acknowledged.

    What waits while a record is written goes into the next one together. A change is visible to
    readers only after it is in the log, and acknowledged only when each replica that answers
    holds it; a replica that fails is left out until it has caught up and joins again. A client
    whose call was cut off sends its batch again under the same token and is told the version
    that it had.
    """

    def __init__(self, name: str, storage: Storage, path: str, version: int) -> None:
        """Read the folder, unless the snapshot of this version is still to be written."""
        raise_priority()
        self._name, self._files, self._first = name, Files(storage, path), version
        self._live: set[tuple[int, int]] = set()
        # Which process of a replica joined last: what failed may have been the one before.
        self._lives: dict[tuple[int, int], str] = {}
        self._heard: dict[tuple[int, int], float] = {}
        self._metrics = WriterMetrics(name)
        self._waiting: list[tuple[bytes, asyncio.Future[int]]] = []
        self._underway: dict[str, asyncio.Future[int]] = {}
        self._committing: asyncio.Task[None] | None = None
        self._recovering, self._is_recovered = asyncio.Lock(), False
        self._snapshotting, self._describing = asyncio.Lock(), asyncio.Lock()
        self._is_stopped = False
        self._news = asyncio.Condition()
        self._is_open = asyncio.Event()
        try:
            self._open()
        except Exception:
            if not ray.get_runtime_context().was_current_actor_reconstructed:
                raise
            # Ray gives up an actor that raises: it is tried again when it is asked for.
            _log.exception("the folder of index %s cannot be read", name)
        threading.Thread(target=self._report, name="metrics", daemon=True).start()

    def _report(self) -> None:
        """Metrics: replicas tell every two seconds that they are there."""
        while True:
            time.sleep(_REPORT_S)
            if self._is_open.is_set():
                settings, since = self._manifest.settings, time.monotonic() - _SILENT_S
                for shard in range(settings.shards):
                    of_shard = [heard for key, heard in [*self._heard.items()] if key[0] == shard]
                    there = sum(heard > since for heard in of_shard)
                    self._metrics.replicas(shard, there, settings.replicas)

    def _open(self) -> None:
        manifest = self._files.manifest()
        if manifest is not None and manifest.version >= self._first:
            self._load(manifest)
            self._is_open.set()

    async def _opened(self) -> None:
        """Wait until the snapshot is complete; after a crash, until the folder can be read."""
        while not self._is_open.is_set():
            try:
                await asyncio.wait_for(self._is_open.wait(), _RETRY_S)
            except TimeoutError:
                try:
                    self._open()
                except Exception:
                    _log.exception("the folder of index %s cannot be read", self._name)

    async def start(self) -> None:
        """Take changes from now on: the snapshot is complete."""
        if not self._is_open.is_set():
            self._open()
        if not self._is_open.is_set():
            where = self._files.storage.uri(self._files.path)
            raise StorageError(f"there is no complete snapshot below {where}")

    def _load(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._version = manifest.version
        self._tokens: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._recent: collections.deque[tuple[int, bytes]] = collections.deque()
        self._recent_bytes = self._bytes_since = self._records_since = 0
        for version in self._files.log_versions():
            # Those before the snapshot too: a client may send again what it was not told of.
            record = self._files.record(version)
            if version == min(manifest.shard_versions) + 1:
                self._bytes_since = self._records_since = 0
            if record is not None:
                self._remember(version, record)
        settings = manifest.settings
        self._replicas = {
            (shard, number): actor(replica_name(self._name, shard, number))
            for shard in range(settings.shards)
            for number in range(settings.replicas)
        }
        self._live = set(self._replicas)
        self._heard = dict.fromkeys(self._replicas, time.monotonic())

    async def describe(self) -> tuple[Files, Manifest]:
        """Where the index is kept, and what it is as of its last snapshot."""
        try:
            await asyncio.wait_for(self._opened(), _OPEN_TIMEOUT_S)
        except TimeoutError:
            raise UnavailableError(
                f"index {self._name!r} is still being built: ask again later"
            ) from None
        return self._files, self._manifest

    async def commit(self, token: str, record: bytes) -> int:
        """Apply a batch that `_record.encode` made; its version, once it is safe and visible."""
        await self._opened()
        async with self._recovering:
            await self._recover()
        done = self._underway.get(token)
        if done is None:
            if token in self._tokens:
                return self._tokens[token]
            if self._is_stopped:
                raise UnavailableError(f"index {self._name!r} ends: it takes no more changes")
            done = asyncio.get_running_loop().create_future()
            self._underway[token] = done
            done.add_done_callback(lambda _: self._underway.pop(token, None))
            self._waiting.append((record, done))
            if self._committing is None:
                self._committing = asyncio.create_task(self._commit_all())
        return await asyncio.shield(done)

    async def stop(self) -> None:
        """Finish the changes under way and refuse others: what starts next reads the log."""
        self._is_stopped = True
        if self._committing is not None:
            await asyncio.shield(self._committing)

    async def join(self, shard: int, number: int, life: str) -> tuple[int, int]:
        """Count a replica in again.

        Args:
            shard: Of the replica.
            number: Of the replica.
            life: Names its process.

        Returns:
            The version that it must have before it answers, and the ef of queries.
        """
        await self._opened()
        self._live.add((shard, number))
        self._heard[shard, number] = time.monotonic()
        self._lives[shard, number] = life
        return self._version, self._manifest.settings.ef

    async def changes(self, after: int, wait_s: float) -> list[tuple[int, bytes]] | None:
        """The records after a version; waits for one. None: read the folder, they are too old."""
        await self._opened()
        if self._version <= after:
            async with self._news:
                try:
                    await asyncio.wait_for(self._news.wait(), wait_s)
                except TimeoutError:
                    return []
        found = [one for one in self._recent if one[0] > after]
        return found if found and found[0][0] == after + 1 else None

    async def set_ef(self, ef: int) -> None:
        """Let every replica look at so many candidates, now and after a restart."""
        await self._opened()
        async with self._describing:
            settings = self._manifest.settings.model_copy(update={"ef": ef})
            await self._describe(settings=settings)
        await self._tell_all("set_ef", ef)

    async def compact(self) -> None:
        """Rebuild every replica's graph without its tombstones."""
        await self._opened()
        await self._tell_all("compact", timeout_s=None)

    async def snapshot(self) -> int:
        """Write a snapshot while the index goes on; the version that it restores."""
        await self._opened()
        async with self._snapshotting:
            if self._manifest.version == self._version:
                return self._version
            folder, shards = f"{self._version:020d}", self._manifest.settings.shards
            written = await asyncio.gather(
                *(self._snapshot_shard(folder, shard) for shard in range(shards))
            )
            # A replica that dies now may have written; only the manifest makes it count.
            async with self._describing:
                await self._describe(
                    folder=folder,
                    version=max(version for version, _ in written),
                    shard_versions=tuple(version for version, _ in written),
                    rows=sum(rows for _, rows in written),
                )
            self._bytes_since = self._records_since = 0
            await asyncio.to_thread(self._files.prune, self._manifest.settings.keep_snapshots)
            return self._manifest.version

    async def status(self) -> dict[tuple[int, int], dict[str, int] | None]:
        """Counts of each replica, None of one that does not answer."""
        await self._opened()
        found = await asyncio.gather(
            *(self._ask(key, "status", timeout_s=5.0) for key in self._replicas),
            return_exceptions=True,
        )
        return {
            key: None if isinstance(one, BaseException) else one
            for key, one in zip(self._replicas, found, strict=True)
        }

    # --- the loop of commits ---

    async def _recover(self) -> None:
        """The last record of a writer that died may not have reached every replica."""
        if not self._is_recovered:
            await self._push("catch_up", self._version)
            self._is_recovered = True

    async def _commit_all(self) -> None:
        try:
            while self._waiting:
                taken, self._waiting = self._waiting, []
                await self._commit(
                    b"".join(record for record, _ in taken), [one for _, one in taken]
                )
        finally:
            self._committing = None

    async def _commit(self, record: bytes, waiting: Sequence[asyncio.Future[int]]) -> None:
        version = self._version + 1
        try:
            await asyncio.to_thread(self._write, version, record)
        except Exception as error:
            _log.exception("a batch of changes could not be logged")
            for done in waiting:
                done.set_exception(
                    StorageError(f"the index's log cannot be written, nothing has changed: {error}")
                )
            return
        self._remember(version, record)  # from here on a joining replica must have it
        pending = await self._push("apply", version, record)
        self._metrics.change()
        for done in waiting:
            done.set_result(version)
        async with self._news:
            self._news.notify_all()
        await self._maybe_wait(pending)

    def _write(self, version: int, record: bytes) -> None:
        try:
            self._files.write_record(version, record)
        except FileExistsError:
            # This process was cut off, and another has taken its place: what it knows is old, and
            # whoever asks it must ask the other. If it has none, it starts again from the log.
            _log.error("index %s: version %d is another writer's; this one ends",
                       self._name, version)  # fmt: skip
            os._exit(1)

    async def _push(self, method: str, *args: Any) -> int:
        """Have all replicas take a version; the most rows that wait beside a graph."""
        taken = await asyncio.gather(
            *(self._bring(key, method, *args) for key in sorted(self._live))
        )
        return max(taken, default=0)

    async def _bring(self, key: tuple[int, int], method: str, *args: Any) -> int:
        """Have a replica take a version; one that does not is left out until it joins again.

        Ray tells that a process is dead only a second later, when the next may have joined: that
        one has read the log, and must not be left out. Nor must one that was out of reach for a
        moment: it is asked again.
        """
        failed: Exception | None = None
        for _ in range(_ATTEMPTS):
            life = self._lives.get(key)
            try:
                if self._has_second(key):
                    size = len(args[-1]) if method == "apply" else 0
                    patience_s = _PATIENCE_S + size / _BYTES_PER_S
                    try:
                        return await self._ask(key, method, *args, timeout_s=patience_s)
                    except TimeoutError:
                        if self._has_second(key):
                            raise
                return await self._ask(key, method, *args)
            except ray.exceptions.RayActorError as error:
                failed = error
                if self._lives.get(key) != life:
                    return 0
            except Exception as error:
                # It lives, and would answer without this change.
                failed = error
                ray.kill(self._replicas[key], no_restart=False)
                break
        self._live.discard(key)
        _log.warning("replica %d.%d is left out until it joins again (%r)", *key, failed)
        return 0

    def _has_second(self, key: tuple[int, int]) -> bool:
        """Whether another replica of a shard takes what this one takes."""
        return any(one[0] == key[0] and one != key for one in self._live)

    async def _maybe_wait(self, pending: int) -> None:
        if pending > _PENDING_ROWS:
            await asyncio.sleep(min(_MAX_WAIT_S, (pending - _PENDING_ROWS) * _WAIT_S_PER_ROW))
        since = self._bytes_since, self._records_since
        limits = self._manifest.settings.snapshot_after_bytes, _SNAPSHOT_AFTER_RECORDS
        if any(one >= limit for one, limit in zip(since, limits, strict=True)):
            self._bytes_since = self._records_since = 0
            self._background = asyncio.create_task(self._try_snapshot())

    async def _try_snapshot(self) -> None:
        try:
            await self.snapshot()
        except Exception:
            _log.exception("a snapshot failed; the log keeps all changes, the next one follows")

    async def _snapshot_shard(self, folder: str, shard: int) -> tuple[int, int]:
        last: BaseException | None = None
        for key in sorted(self._live):
            if key[0] == shard:
                try:
                    return await self._ask(key, "snapshot", folder, timeout_s=None)
                except Exception as error:
                    last = error
        raise StorageError(f"shard {shard} has no replica that can write a snapshot") from last

    async def _tell_all(self, method: str, *args: Any, timeout_s: float | None = 60.0) -> None:
        found = await asyncio.gather(
            *(self._ask(key, method, *args, timeout_s=timeout_s) for key in sorted(self._live)),
            return_exceptions=True,
        )
        for one in found:
            # What a replica that died missed it is told when it joins, or does not need.
            if isinstance(one, BaseException) and not isinstance(one, ray.exceptions.RayActorError):
                raise one

    async def _describe(self, **changed: Any) -> None:
        """Change the manifest, on storage first."""
        manifest = dataclasses.replace(self._manifest, **changed)
        await asyncio.to_thread(self._files.commit, manifest)
        self._manifest = manifest

    async def _ask(
        self, key: tuple[int, int], method: str, *args: Any,
        timeout_s: float | None = _PUSH_TIMEOUT_S,
    ) -> Any:  # fmt: skip
        called = getattr(self._replicas[key], method).remote(*args)
        return await asyncio.wait_for(asyncio.wrap_future(called.future()), timeout_s)

    def _remember(self, version: int, record: bytes) -> None:
        self._version = max(self._version, version)
        for token in _record.tokens(record):
            self._tokens[token] = version
        while len(self._tokens) > _REMEMBERED_TOKENS:
            self._tokens.popitem(last=False)
        self._recent.append((version, record))
        self._recent_bytes += len(record)
        self._bytes_since += len(record)
        self._records_since += 1
        while self._recent_bytes > _REMEMBERED_BYTES and len(self._recent) > 1:
            self._recent_bytes -= len(self._recent.popleft()[1])
