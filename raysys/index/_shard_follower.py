"""A shard of a process that follows the log, and its background maintenance."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from raysys.errors import StorageError
from raysys.index._change_record import decode

if TYPE_CHECKING:
    from raysys.index._persistence import IndexFiles
    from raysys.index._shard import Shard

_IDLE_S = 0.2
_FULL_SPEED_ROWS = 2000
_NICENESS = 10
_log = logging.getLogger("raysys.index")


class ShardFollower:
    """A shard that follows an index's folder, and a thread that merges and compacts it.

    Attributes:
        shard: The present shard.
        is_closed: Whether the maintenance ends.
    """

    def __init__(self, files: IndexFiles, number: int, shard: Shard | None = None) -> None:
        """Adopt a shard that was just written, or load the last snapshot and the log since."""
        self._files, self._number = files, number
        self._shards = 0
        self._order = threading.Lock()
        self._changed = threading.Event()
        self.shard = shard or self._load()
        self.is_closed = False
        threading.Thread(target=self._maintain, name="maintenance", daemon=True).start()

    def close(self) -> None:
        """End the maintenance, so that the shard can be freed."""
        self.is_closed = True

    def apply(self, version: int, record: bytes | None = None) -> None:
        """Apply the log up to a version; `record` is that of the version, if it is at hand."""
        with self._order:
            upto = version if record is None else version - 1
            if self.shard.version < upto:
                self._follow_log(self.shard, upto)
            if self.shard.version < upto:
                # Only an index that was rebuilt under this name leaves such a gap.
                self.shard = self._load()
            if record is not None and self.shard.version == upto:
                shards = self.shard.settings.shards
                self.shard.apply(version, decode(record).of_shard(self._number, shards))
            if self.shard.version < version:
                raise StorageError(
                    f"the log of {self._files.uri} ends at version {self.shard.version} on this "
                    f"node, and at {version} elsewhere"
                )
        self._changed.set()

    def _load(self) -> Shard:
        while True:
            manifest = self._files.manifest()
            if manifest is None:
                raise StorageError(
                    f"no complete snapshot of an index at {self._files.uri}: build it again"
                )
            self._shards = self._shards or manifest.settings.shards
            if manifest.settings.shards != self._shards:
                raise StorageError(
                    f"the index was rebuilt with {manifest.settings.shards} shards instead of "
                    f"{self._shards}: connect to it again"
                )
            shard = self._files.read_shard(manifest, self._number)
            gap = self._follow_log(shard)
            if gap is None:
                return shard
            if manifest == self._files.manifest():
                raise StorageError(
                    f"the log of {self._files.uri} lacks version {gap}: restore an earlier snapshot"
                )
            # A newer snapshot has replaced that part of the log.

    def _follow_log(self, shard: Shard, upto: int | None = None) -> int | None:
        """Apply the records that follow; return the first missing version, or None."""
        for version, batch in self._files.changes(shard.version, upto):
            if version != shard.version + 1:
                return shard.version + 1
            shard.apply(version, batch.of_shard(self._number, shard.settings.shards))
        return None

    def _maintain(self) -> None:
        """Move rows into the graph, a few at a time; rebuild it when too many rows are deleted."""
        while not self.is_closed:
            shard = self.shard
            try:
                started = time.monotonic()
                if shard.needs_compaction:
                    _log.warning(
                        "rebuilding shard %d of %d rows: deleted rows exceed "
                        "max_tombstone_ratio=%g",
                        self._number, shard.size, shard.settings.max_tombstone_ratio,
                    )  # fmt: skip
                    # In a thread of its own: its low priority cannot be raised again.
                    builder = threading.Thread(target=_compact, args=(shard,), daemon=True)
                    builder.start()
                    builder.join()
                elif shard.merge():
                    # Few rows outside the graph cost queries little: yield the processor to them.
                    duration = time.monotonic() - started
                    time.sleep(2e-4 if shard.pending > _FULL_SPEED_ROWS else 3 * duration)
                else:
                    self._changed.wait(_IDLE_S)
                    self._changed.clear()
            except Exception:
                _log.exception("maintenance of a shard failed; retrying")
                time.sleep(10 * _IDLE_S)


def _compact(shard: Shard) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)  # of this thread
    shard.compact()
