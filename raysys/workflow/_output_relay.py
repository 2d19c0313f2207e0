"""Relay of a step's output to the driver, line by line through the cluster's key-value store.

Ray itself streams the output of all workers; a job shows that of its steps only.
"""

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from raysys.ray_internals import key_value


class _LineSender(io.TextIOBase):
    """A text stream that sends complete lines; the worker's own log has them too."""

    def __init__(self, channel: str) -> None:
        self._channel, self._number, self._incomplete = channel, 0, ""
        self._own, self._lock = sys.stdout, threading.Lock()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            self._own.write(text)
            lines, newline, self._incomplete = (self._incomplete + text).rpartition("\n")
            if newline:
                key = f"{self._channel}:{self._number:08d}".encode()
                self._number += 1
                key_value.put(key, f"{lines}\n".encode())
        return len(text)

    def flush(self) -> None:
        self._own.flush()


@contextmanager
def relayed(channel: str) -> Iterator[None]:
    """Send this process's standard output to the reader of a channel."""
    sender = _LineSender(channel)
    try:
        with redirect_stdout(sender):
            yield
    finally:
        if sender._incomplete:
            sender.write("\n")


def take(channel: str) -> str:
    """Output since the last call; lines of one sender are in order."""
    output = []
    for key in sorted(key_value.keys(f"{channel}:".encode())):
        output.append(key_value.get(key) or b"")
        key_value.delete(key)
    return b"".join(output).decode()
