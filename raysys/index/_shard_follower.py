"""A shard that a process keeps: loaded from storage, following the log, looked after."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from raysys.errors import StorageError
from raysys.index._change_record import decode

if TYPE_CHECKING:
    from raysys.index._persistence import Files, Manifest
    from raysys.index._shard import Shard

_IDLE_S = 0.2
_FULL_SPEED_ROWS = 2000
_NICENESS = 10
_log = logging.getLogger("raysys.index")


class HeldShard:
    """A shard kept up to date from an index's folder, and its housekeeping in a thread.

    Attributes:
        shard: What is searched.
    """

    def __init__(self, files: Files, number: int, shard: Shard | None = None) -> None:
        """Load the last snapshot and the log since.

        Args:
            files: Of the index.
            number: Of the shard.
            shard: What a snapshot was just written of; nothing is loaded then.

        Raises:
            StorageError: There is no snapshot.
        """
        self._files, self._number = files, number
        self._shards = 0
        self._order = threading.Lock()
        self._changed = threading.Event()
        self.shard = shard or self._load()
        self._is_closed = False
        threading.Thread(target=self._keep_house, name="housekeeping", daemon=True).start()

    def close(self) -> None:
        """End the housekeeping, so that the shard can be freed."""
        self._is_closed = True

    def apply(self, version: int, record: bytes) -> None:
        """Apply a record of the log, after those before it that never came."""
        with self._order:
            if version > self.shard.version + 1:
                self._catch_up(version - 1)
            if version == self.shard.version + 1:
                batch = decode(record)
                shards = self.shard.settings.shards
                self.shard.apply(version, batch.of_shard(self._number, shards))
            self._check(version)
        self._changed.set()

    def catch_up(self, upto: int) -> None:
        """Apply what the log holds up to a version."""
        with self._order:
            self._catch_up(upto)
            self._check(upto)
        self._changed.set()

    def _check(self, version: int) -> None:
        if self.shard.version < version:
            raise StorageError(
                f"the log of {self._files.storage.uri(self._files.path)} goes to version "
                f"{self.shard.version} here, and to {version} elsewhere"
            )

    def _catch_up(self, upto: int) -> None:
        self._follow_log(self.shard, upto)
        if self.shard.version < upto:
            # Only an index that was built anew under this name leaves such a gap.
            self.shard = self._load()

    def _load(self) -> Shard:
        while True:
            manifest = self._files.manifest()
            shard = self._read(manifest)
            gap = self._follow_log(shard)
            if gap is None:
                return shard
            if manifest == self._files.manifest():
                raise StorageError(
                    f"the log of {self._files.storage.uri(self._files.path)} lacks version {gap}: "
                    "restore an earlier snapshot"
                )
            # A newer snapshot took the place of that part of the log.

    def _follow_log(self, shard: Shard, upto: int | None = None) -> int | None:
        """Apply what follows; a version that is missing, if one is."""
        for version, batch in self._files.changes(shard.version, upto):
            if version != shard.version + 1:
                return shard.version + 1
            shard.apply(version, batch.of_shard(self._number, shard.settings.shards))
        return None

    def _read(self, manifest: Manifest | None) -> Shard:
        if manifest is None:
            raise StorageError(
                f"there is no complete snapshot of an index at "
                f"{self._files.storage.uri(self._files.path)}: build it again"
            )
        self._shards = self._shards or manifest.settings.shards
        if manifest.settings.shards != self._shards:
            raise StorageError(
                f"the index was built anew with {manifest.settings.shards} shards instead of "
                f"{self._shards}: connect to it again"
            )
        return self._files.read_shard(manifest, self._number)

    def _keep_house(self) -> None:
        """Move rows into the graph, a few at a time; rebuild it when too much of it is dead."""
        while not self._is_closed:
            shard = self.shard
            try:
                started = time.monotonic()
                if shard.wants_compaction:
                    _log.warning(
                        "rebuilding shard %d, of %d rows: more than max_tombstones=%g have ended",
                        self._number, shard.size, shard.settings.max_tombstones,
                    )  # fmt: skip
                    # In a thread of its own: its low priority cannot be taken back.
                    builder = threading.Thread(target=_compact, args=(shard,), daemon=True)
                    builder.start()
                    builder.join()
                elif shard.merge():
                    # Few rows beside the graph cost queries little: leave the processor to them.
                    taken = time.monotonic() - started
                    time.sleep(2e-4 if shard.pending > _FULL_SPEED_ROWS else 3 * taken)
                else:
                    self._changed.wait(_IDLE_S)
                    self._changed.clear()
            except Exception:
                _log.exception("housekeeping of a shard failed; it is tried again")
                time.sleep(10 * _IDLE_S)


def _compact(shard: Shard) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)  # of this thread
    shard.compact()
