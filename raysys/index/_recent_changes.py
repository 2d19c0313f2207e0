"""Recent records of an index's log, as its writer keeps them in memory."""

from __future__ import annotations

import collections

from raysys.index import _change_record as _record

_MAX_TOKENS = 100_000
_MAX_BYTES = 64 << 20
_SNAPSHOT_AFTER_RECORDS = 10_000


class RecentChanges:
    """Tokens of recent batches, the records that followers ask for, and the size of the log."""

    def __init__(self) -> None:
        self._versions: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._records: collections.deque[tuple[int, bytes]] = collections.deque()
        self._bytes = self._log_bytes = self._log_records = 0

    def add(self, version: int, record: bytes) -> None:
        """Add a record, and forget the oldest beyond the limits."""
        for token in _record.tokens(record):
            self._versions[token] = version
        while len(self._versions) > _MAX_TOKENS:
            self._versions.popitem(last=False)
        self._records.append((version, record))
        self._bytes += len(record)
        self._log_bytes += len(record)
        self._log_records += 1
        while self._bytes > _MAX_BYTES and len(self._records) > 1:
            self._bytes -= len(self._records.popleft()[1])

    def version_of(self, token: str) -> int | None:
        """Version of the batch with a token, or None."""
        return self._versions.get(token)

    def after(self, version: int) -> list[tuple[int, bytes]] | None:
        """The records after a version, or None if some are no longer in memory."""
        records = [item for item in self._records if item[0] > version]
        return records if records and records[0][0] == version + 1 else None

    def start_log(self) -> None:
        """Measure the log from here on: a snapshot covers the records so far."""
        self._log_bytes = self._log_records = 0

    def needs_snapshot(self, max_bytes: int) -> bool:
        """Whether the log since the last snapshot is too long."""
        return self._log_bytes >= max_bytes or self._log_records >= _SNAPSHOT_AFTER_RECORDS
