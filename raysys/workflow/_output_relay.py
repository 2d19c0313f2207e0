"""What a step prints, brought to the driver line by line through the cluster's key-value store.

Ray's own way is to stream all output of all workers; a job's reader wants the steps' alone.
"""

from __future__ import annotations

import io
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raysys.ray_internals import key_value

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Lines(io.TextIOBase):
    """A text stream that sends whole lines; a copy stays in the worker's own log."""

    def __init__(self, channel: str) -> None:
        self._channel, self._number, self._rest = channel, 0, ""
        self._own, self._lock = sys.stdout, threading.Lock()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            self._own.write(text)
            whole, mark, self._rest = (self._rest + text).rpartition("\n")
            if mark:
                key = f"{self._channel}:{self._number:08d}".encode()
                self._number += 1
                key_value.put(key, f"{whole}\n".encode())
        return len(text)

    def flush(self) -> None:
        self._own.flush()


@contextmanager
def relayed(channel: str) -> Iterator[None]:
    """Send what this process prints to whoever takes it."""
    lines, before = _Lines(channel), sys.stdout
    sys.stdout = lines
    try:
        yield
    finally:
        sys.stdout = before
        if lines._rest:
            lines.write("\n")


def take(channel: str) -> str:
    """What was printed since the last time; lines of one sender are in order."""
    keys = sorted(key_value.keys(f"{channel}:".encode()))
    said = []
    for key in keys:
        said.append(key_value.get(key) or b"")
        key_value.delete(key)
    return b"".join(said).decode()
