"""A copy of a single-shard index in this process."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import ray

from raysys.errors import DataError, UnavailableError
from raysys.index import _actor_names as _names
from raysys.index._query_result import QueryResult, check_queries, check_query_arguments
from raysys.index._shard_follower import ShardFollower
from raysys.index._slot_rows import VersionExpiredError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.index._persistence import IndexFiles

_POLL_TIMEOUT_S = 20.0
_RETRY_S = 1.0
_STALE_ATTEMPTS = 10
_log = logging.getLogger("raysys.index")


class LocalIndex:
    """A copy of a single-shard index in this process: queries make no network hop.

    It follows the index: a change is visible a moment after it was acknowledged (query the
    `VectorIndex` where it must be visible at once). While the index's actors are unavailable, it
    answers from what it has.
    """

    def __init__(self, name: str, files: IndexFiles) -> None:
        """Load the copy and follow the index; see `VectorIndex.local`.

        Raises:
            DataError: The index has more than one shard.
            StorageError: The index has no snapshot.
        """
        self._name, self._files = name, files
        manifest = self._files.manifest()
        if manifest is not None and manifest.settings.shards > 1:
            raise DataError(
                f"index {name!r} has {manifest.settings.shards} shards; a local copy requires "
                "a single one. Query the actors, or restore the index with shards=1"
            )
        self._follower = ShardFollower(self._files, 0)
        threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def __repr__(self) -> str:
        return f"LocalIndex({self._name!r}, version={self.version})"

    def close(self) -> None:
        """Stop following and free the copy, at the next change or within 20 s."""
        self._follower.close()

    @property
    def version(self) -> int:
        """Version of the last batch of changes that is visible here."""
        return self._follower.shard.version

    def query(
        self, vectors: Any, k: int, *, ef_search: int | None = None,
        filters: str | Sequence[str | None] | None = None,
    ) -> QueryResult:  # fmt: skip
        """The k nearest rows of each vector, see `VectorIndex.query`."""
        shard = self._follower.shard
        matrix = check_queries(vectors, shard.settings)
        filters = check_query_arguments(matrix, k, ef_search, filters)
        for _ in range(_STALE_ATTEMPTS):
            try:
                _, ids, distances = shard.search(matrix, k, ef_search, filters)
                return QueryResult(ids, distances)
            except VersionExpiredError:  # it took longer than the shard remembers
                shard = self._follower.shard
        raise UnavailableError(f"index {self._name!r} changes too fast: query fewer vectors")

    def _follow(self) -> None:
        while not self._follower.is_closed:
            if not ray.is_initialized():  # a lookup of an actor would start another Ray
                time.sleep(_RETRY_S)
                continue
            try:
                writer = _names.actor(_names.writer_name(self._name))
                records = ray.get(writer.changes.remote(self.version, _POLL_TIMEOUT_S))
                if records is None:
                    self._follower.apply(self._files.last_version())
                for version, record in records or ():
                    self._follower.apply(version, record)
            except Exception as error:  # the index restarts, or has ended
                _log.info("cannot follow index %s: %r", self._name, error)
                time.sleep(_RETRY_S)
