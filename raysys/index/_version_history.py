"""Recent versions of a shard, for which it can still answer."""

from __future__ import annotations

import collections
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# How long a shard can answer as of an earlier version: a client that got answers of different
# versions from its shards asks for the lowest.
HORIZON_S = 10.0


class VersionExpiredError(Exception):
    """The requested version is older than the shard remembers: request the present one."""


class VersionHistory:
    """Slots of the rows that ended within the last seconds, by version."""

    def __init__(self, version: int) -> None:
        """Begin at a version, the oldest that is available."""
        self._oldest = version
        self._deaths: collections.deque[tuple[float, int, np.ndarray]] = collections.deque()

    def record(self, version: int, slots: np.ndarray) -> None:
        """Add the slots that a version ended, and forget old versions."""
        now = time.monotonic()
        self._deaths.append((now, version, slots))
        while self._deaths and self._deaths[0][0] < now - HORIZON_S:
            self._oldest = self._deaths.popleft()[1]

    def ended_after(self, version: int) -> list[np.ndarray]:
        """Slots that later versions ended."""
        return [slots for _, when, slots in self._deaths if when > version]

    def check(self, version: int) -> None:
        """Refuse a version that is older than the history.

        Raises:
            VersionExpiredError: It is.
        """
        if version < self._oldest:
            raise VersionExpiredError(
                f"version {version} has expired, the oldest available is {self._oldest}"
            )
