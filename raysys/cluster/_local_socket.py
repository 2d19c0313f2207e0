"""Requests to an actor on the same node over a Unix socket, in a tenth of a Ray call's time.

The sockets have abstract names (Linux) instead of files: they end with their process, no other
machine reaches them, and each side checks that the other is a process of its own user.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import select
import socket
import struct
import threading
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_HEAD = struct.Struct("<IB")
_ANSWER, _ERROR = 0, 1
_CREDENTIALS = struct.Struct("3i")
_log = logging.getLogger("raysys.cluster")


def listen(answer: Callable[[bytes], bytes]) -> str | None:
    """Answer requests, in a thread per client, at this address; None without abstract sockets."""
    address = f"\0raysys-{uuid.uuid4().hex}"
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(address)
    except OSError as error:
        _log.warning("cannot listen on a local socket, using Ray calls: %s", error)
        return None
    listening.listen(128)

    def accept() -> None:
        while True:
            client, _ = listening.accept()
            threading.Thread(target=_answer_all, args=(client, answer), daemon=True).start()

    threading.Thread(target=accept, name="channel", daemon=True).start()
    return address


def _answer_all(client: socket.socket, answer: Callable[[bytes], bytes]) -> None:
    with client, contextlib.suppress(OSError):
        check_user(client)
        while True:
            _, request = _receive(client)
            try:
                kind, data = _ANSWER, answer(request)
            except Exception as error:
                kind, data = _ERROR, _pickled(error)
            client.sendall(_HEAD.pack(len(data), kind) + data)


def _pickled(error: Exception) -> bytes:
    try:
        return pickle.dumps(error)
    except Exception:  # of a local class, or with attributes that cannot be pickled
        return pickle.dumps(RuntimeError(repr(error)))


class Channel:
    """A connection for one request at a time."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(address)
            check_user(self._socket)
        except OSError:
            self._socket.close()
            raise

    def send(self, request: bytes) -> None:
        """Send a request; `receive` returns the answer. An `OSError` if the process has ended."""
        self._socket.sendall(_HEAD.pack(len(request), _ANSWER) + request)

    def is_ready(self, timeout_s: float) -> bool:
        """Whether `receive` would return or raise at once."""
        # Not select.select, which accepts no more than 1,024 files.
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(1000 * max(0.0, timeout_s)))

    def receive(self, timeout_s: float) -> bytes:
        """The answer, or the other side's exception; an `OSError` if its process has ended."""
        if not self.is_ready(timeout_s):
            raise TimeoutError
        kind, data = _receive(self._socket)
        if kind == _ERROR:
            raise pickle.loads(data)
        return data

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class AsyncChannel(asyncio.Protocol):
    """A connection of an event loop, for one request at a time."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._answer: asyncio.Future[bytes] | None = None
        self._parts: list[bytes] = []
        self._missing = _HEAD.size
        self._kind: int | None = None  # of the answer whose head has been read

    @classmethod
    async def connect(cls, address: str) -> AsyncChannel:
        """A connection to an address of `listen`; an `OSError` if its process has ended."""
        loop, peer = asyncio.get_running_loop(), socket.socket(socket.AF_UNIX)
        try:
            peer.setblocking(False)
            await loop.sock_connect(peer, address)
            check_user(peer)
            return (await loop.create_unix_connection(cls, sock=peer))[1]
        except OSError:
            peer.close()
            raise

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        """A future of the answer; a `ConnectionResetError` in it if the process ends."""
        assert self._answer is None or self._answer.done()
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport is None:
            self._answer.set_exception(ConnectionResetError("the peer has ended"))
        else:
            self._transport.writelines([_HEAD.pack(len(request), _ANSWER), request])
        return self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        while data:
            self._parts.append(data[: self._missing])
            data = data[self._missing :]
            self._missing -= len(self._parts[-1])
            if self._missing:
                return
            message, self._parts = b"".join(self._parts), []
            if self._kind is None:
                self._missing, self._kind = _HEAD.unpack(message)
                if self._missing:
                    continue
                message = b""
            kind, self._kind, self._missing = self._kind, None, _HEAD.size
            if self._answer and not self._answer.done():
                if kind == _ERROR:
                    self._answer.set_exception(pickle.loads(message))
                else:
                    self._answer.set_result(message)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the peer has ended"))

    def close(self) -> None:
        """Close the connection."""
        if self._transport:
            self._transport.close()


def check_user(peer: socket.socket) -> None:
    """Refuse another user's process, since its data is unpickled."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    if _CREDENTIALS.unpack(credentials)[1] != os.getuid():
        raise PermissionError("the peer is a process of another user")


def _receive(source: socket.socket) -> tuple[int, bytes]:
    length, kind = _HEAD.unpack(_exactly(source, _HEAD.size))
    return kind, _exactly(source, length)


def _exactly(source: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = source.recv(min(count, 1 << 20))
        if not part:
            raise ConnectionResetError("the peer has ended")
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
