"""An index of one shard inside this process, kept up to date."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import ray

from raysys.errors import DataError, UnavailableError
from raysys.index import _actor_names as _names
from raysys.index._shard import StaleError
from raysys.index._shard_follower import HeldShard
from raysys.index._types import Found, check_queries, check_question

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.index._persistence import Files

_WAIT_S = 20.0
_RETRY_S = 1.0
_STALE_ATTEMPTS = 10
_log = logging.getLogger("raysys.index")


class LocalIndex:
    """A copy of a single-shard index in this process: queries make no hop at all.

    It follows the index: a change is seen here a moment after it was acknowledged (where each
    query must see it at once, ask the `VectorIndex`). While the index's actors are away it
    answers with what it has.
    """

    def __init__(self, name: str, files: Files) -> None:
        """Load the copy and begin to follow; made by `VectorIndex.local`.

        Raises:
            DataError: The index has more than one shard.
            StorageError: It has no snapshot.
        """
        self._name, self._files = name, files
        manifest = self._files.manifest()
        if manifest is not None and manifest.settings.shards > 1:
            raise DataError(
                f"index {name!r} has {manifest.settings.shards} shards; one of a single shard "
                "can be held in a process. Ask the actors, or restore it with shards=1"
            )
        self._held = HeldShard(self._files, 0)
        self._is_closed = False
        threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def close(self) -> None:
        """Follow no longer, and give up the copy; takes until the next change, or 20 s."""
        self._held.close()
        self._is_closed = True

    @property
    def version(self) -> int:
        """Of the last batch of changes that is seen here."""
        return self._held.shard.version

    def query(
        self, vectors: Any, k: int, *, ef: int | None = None,
        filters: str | Sequence[str | None] | None = None,
    ) -> Found:  # fmt: skip
        """The k nearest rows of each vector, see `VectorIndex.query`."""
        shard = self._held.shard
        matrix = check_queries(vectors, shard.settings)
        filters = check_question(matrix, k, ef, filters)
        for _ in range(_STALE_ATTEMPTS):
            try:
                _, ids, distances = shard.search(matrix, k, ef, filters)
                return Found(ids, distances)
            except StaleError:  # it took longer than the shard remembers
                shard = self._held.shard
        raise UnavailableError(f"index {self._name!r} changes too fast: ask with fewer vectors")

    def _follow(self) -> None:
        while not self._is_closed:
            if not ray.is_initialized():  # to ask for an actor would start another Ray
                time.sleep(_RETRY_S)
                continue
            try:
                writer = _names.actor(_names.writer_name(self._name))
                found = ray.get(writer.changes.remote(self.version, _WAIT_S))
                if found is None:
                    self._held.catch_up(self._files.last_version())
                for version, record in found or ():
                    self._held.apply(version, record)
            except Exception as error:  # the index restarts, or has ended
                _log.info("index %s does not tell its changes: %r", self._name, error)
                time.sleep(_RETRY_S)
