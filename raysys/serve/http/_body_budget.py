"""The memory of long bodies: bounded over all connections of a replica, and given back."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field

FREE_BYTES = 64 << 10
"""Size up to which a body is not counted."""
_LOOK_S = 0.5
# A body may take this long, and a second more for each of these bytes that have arrived.
_RECEIVE_S, _MIN_BYTES_PER_S = 10.0, 64 << 10
_TRIM_BYTES = 16 << 20


@dataclass(eq=False)
class HeldBody:
    """A long body, from its first bytes until its request is answered.

    Attributes:
        refuse: Ends its connection with a status and a message.
        is_complete: Whether all of it has arrived.
    """

    refuse: Callable[[int, str], None]
    size: int = 0
    is_complete: bool = False
    started: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)


class BodyBudget:
    """Long bodies of one event loop, and their limit in bytes.

    Beyond it the body that has been silent for the longest time makes room; if all have arrived,
    the new one is refused.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes, self._peak = max_bytes, 0, 0
        self._bodies: set[HeldBody] = set()

    def grow(self, body: HeldBody, size: int) -> None:
        """Set the size of a body, which has just grown."""
        self._bodies.add(body)
        self._bytes += size - body.size
        body.size, body.heard = size, time.monotonic()
        self._peak = max(self._peak, self._bytes)
        while self._bytes > self._max_bytes and body in self._bodies:
            incomplete = [item for item in self._bodies if not item.is_complete]
            last = min(incomplete, key=lambda item: item.heard, default=body)
            if last is body:
                self.end(body)
                body.refuse(503, "too many large bodies at the same time; try again later")
            else:
                self.end(last)
                last.refuse(408, "the request did not arrive in time")

    def end(self, body: HeldBody) -> None:
        """Forget a body, whose request has been answered or whose connection has ended."""
        if body in self._bodies:
            self._bodies.remove(body)
            self._bytes -= body.size

    async def watch(self) -> None:
        """End bodies that arrive too slowly, and give memory back, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            now = time.monotonic()
            for body in list(self._bodies):
                limit_s = _RECEIVE_S + body.size / _MIN_BYTES_PER_S
                if not body.is_complete and now - body.started > limit_s:
                    self.end(body)
                    body.refuse(408, "the request did not arrive in time")
            if self._peak - self._bytes > _TRIM_BYTES:
                self._peak = self._bytes
                await asyncio.to_thread(give_back_memory)


def give_back_memory() -> None:
    """Return freed memory to the system, which the C library keeps in many small pieces."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
