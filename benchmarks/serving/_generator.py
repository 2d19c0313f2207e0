"""The connections of the load generator: what is sent when, and what came of it."""

import asyncio
import json
import time
from collections import deque
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

RECONNECT_S = 0.02
"""How long the closed loop waits after a connection failed before it tries again."""

OPENING_S = 0.3
"""Over what time the closed loop opens its connections: all at once, most of them would be taken by
whichever of a server's processes wakes first."""

TICK_S = 0.001
"""The open loop's clock: requests that are due within a tick leave together, the first of them late
by up to a tick, which counts in their latency. A finer clock would take a core from the server."""


@dataclass(frozen=True)
class Records:
    """What came of each request, in the order in which they were done. Times are in seconds.

    Attributes:
        due_s: When it was sent (closed loop) or due (open loop), from the start of the load.
        done_s: When its answer was whole, or it failed.
        outcome: The HTTP status (int), or the kind of failure (str), in an object array.
        wrong_s: When those 200s were due whose JSON lacks the key.
        lag_s: How late the generator sent those that were due while a connection was free.
        cpu_s: Processor time spent.
    """

    due_s: np.ndarray
    done_s: np.ndarray
    outcome: np.ndarray
    wrong_s: np.ndarray
    lag_s: np.ndarray
    cpu_s: float


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on its way."""

    def __init__(self, generator: "Generator") -> None:
        self._generator = generator
        self._transport: Any = None
        self._received = b""
        self._failed = False
        self.due = 0.0  # of the request on its way
        self.sent = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready for the first request."""
        self._transport = transport
        self._generator.connected(self)

    @property
    def closing(self) -> bool:
        """Whether the server or we have closed it."""
        return self._transport.is_closing()

    def send(self, request: bytes, due: float) -> None:
        """Write a request that was due at a time."""
        self.due, self.sent, self.busy = due, time.perf_counter(), True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """An answer, or a part of one."""
        if self._received:
            data = self._received + data
        while True:  # more than once only for answers like 100 Continue
            head_end = data.find(b"\r\n\r\n")
            if head_end < 0:
                self._received = data
                return
            if data[9:10] != b"1":
                break
            data = data[head_end + 4 :]
        head = data[:head_end].lower()
        start = head_end + 4
        try:
            status = int(head[9:12])
            at = head.find(b"\r\ncontent-length:")
            if at >= 0:
                end = start + int(head[at + 17 :].split(b"\r\n", 1)[0])
                if len(data) < end:
                    self._received = data
                    return
                body = data[start:end]
            elif b"\r\ntransfer-encoding: chunked" in head:
                whole = _dechunked(data, start)
                if whole is None:
                    self._received = data
                    return
                body = whole
            else:
                raise ValueError("an answer of unknown length")
        except ValueError:
            self.fail("invalid")
            return
        self._received = b""
        self.busy = False
        self._generator.answered(self, status, body)
        if b"\r\nconnection: close" in head:
            self._transport.close()
        else:
            self._generator.idle(self)

    def fail(self, kind: str) -> None:
        """Give the connection up; the request on its way, if there is one, has no answer."""
        if self.busy:
            self.busy, self._failed = False, True
            self._generator.failed(self.due, kind)
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, on whichever side it began."""
        if self.busy:
            self.busy, self._failed = False, True
            self._generator.failed(self.due, "reset" if exc else "closed")
        self._generator.lost(self, after_failure=self._failed)


def _dechunked(data: bytes, at: int) -> bytes | None:
    """The body of a chunked answer, or None if it is not whole yet."""
    parts: list[bytes] = []
    while True:
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return None
        size = int(data[at:line_end].split(b";", 1)[0], 16)
        start = line_end + 2
        if len(data) < start + size + 2:
            return None
        if size == 0:
            return b"".join(parts)
        parts.append(data[start : start + size])
        at = start + size + 2


class Generator:
    """Keeps the connections and writes down what comes of each request."""

    def __init__(self, task: dict[str, Any]) -> None:
        url = urlsplit(task["url"])
        self._host, self._port = url.hostname or "127.0.0.1", url.port or 80
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        more = "".join(f"{name}: {value}\r\n" for name, value in task["headers"].items())
        self._requests = []
        for text in task["bodies"]:
            body = text.encode()
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {url.netloc}\r\n{more}"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            self._requests.append(head.encode() + body)
        self._next = 0
        self._clients: int = task["clients"]
        self._rate: float | None = task["rate"]
        self._warmup_s, self._seconds = task["warmup_s"], task["seconds"]
        self._key, self._timeout_s = task["key"], task["timeout_s"]
        self._started = 0.0
        self._stopping = False
        self._opening: set[asyncio.Task[None]] = set()
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []
        self._waiting: deque[float] = deque()  # when each was due, no connection being free
        # As in Records.
        self._due: list[float] = []
        self._done: list[float] = []
        self._outcome: list[int | str] = []
        self._lag: list[float] = []
        self._wrong: list[float] = []

    async def run(self) -> Records:
        """Send until the end of the run, then wait for the answers that are still to come."""
        self._loop = asyncio.get_running_loop()
        self._started, cpu_s = time.perf_counter(), time.process_time()
        end = self._started + self._warmup_s + self._seconds
        watch = self._loop.create_task(self._watch_timeouts())
        if self._rate is None:
            for number in range(self._clients):
                self._loop.call_later(OPENING_S * number / self._clients, self._connect)
            await asyncio.sleep(end - time.perf_counter())
        else:
            await self._send_on_schedule(self._rate, end)
        cpu_s = time.process_time() - cpu_s
        self._stopping = True
        for connection in list(self._idle):
            connection.fail("closed")
        while self._waiting or self._opening or any(c.busy for c in self._open):
            await asyncio.sleep(0.01)
        watch.cancel()
        return Records(
            due_s=np.array(self._due) - self._started,
            done_s=np.array(self._done) - self._started,
            outcome=np.array(self._outcome, object),
            wrong_s=np.array(self._wrong) - self._started,
            lag_s=np.array(self._lag),
            cpu_s=cpu_s,
        )

    async def _send_on_schedule(self, rate: float, end: float) -> None:
        due, step = self._started, 1 / rate
        while due < end:
            now = time.perf_counter()
            while due <= now and due < end:
                while self._idle and self._idle[-1].closing:
                    self._idle.pop()
                if self._idle:
                    if due >= self._started + self._warmup_s:
                        self._lag.append(now - due)
                    self._send(self._idle.pop(), due)
                else:
                    self._waiting.append(due)
                    if len(self._open) + len(self._opening) < self._clients:
                        self._connect()
                due += step
            await asyncio.sleep(max(TICK_S, min(due, end) - time.perf_counter()))

    async def _watch_timeouts(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._timeout_s / 4))
            late = time.perf_counter() - self._timeout_s
            for connection in list(self._open):
                if connection.busy and connection.sent < late:
                    connection.fail("timeout")
            while self._waiting and self._waiting[0] < late:
                self.failed(self._waiting.popleft(), "timeout")

    def _connect(self) -> None:
        task = self._loop.create_task(self._connect_now())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect_now(self) -> None:
        started = time.perf_counter()
        try:
            await asyncio.wait_for(
                self._loop.create_connection(lambda: Connection(self), self._host, self._port),
                self._timeout_s,
            )
        except OSError:  # TimeoutError is one
            # One request fails with it: the one that this client would have sent, or the oldest
            # that waits.
            if self._rate is None:
                self.failed(started, "refused")
            elif self._waiting:
                self.failed(self._waiting.popleft(), "refused")
            self._loop.call_later(RECONNECT_S, self._replace)

    def _replace(self) -> None:
        """Open a connection in place of one that is gone, if there is use for it."""
        if self._waiting or (self._rate is None and not self._stopping):
            self._connect()

    def _send(self, connection: Connection, due: float) -> None:
        request = self._requests[self._next]
        self._next = (self._next + 1) % len(self._requests)
        connection.send(request, due)

    def connected(self, connection: Connection) -> None:
        """A connection is open."""
        self._open.add(connection)
        self.idle(connection)

    def idle(self, connection: Connection) -> None:
        """A connection can take a request."""
        if self._rate is None and not self._stopping:
            self._send(connection, time.perf_counter())
        elif self._waiting:
            self._send(connection, self._waiting.popleft())
        elif self._stopping:
            connection.fail("closed")
        else:
            self._idle.append(connection)

    def answered(self, connection: Connection, status: int, body: bytes) -> None:
        """A connection has its answer."""
        self._note(connection.due, status)
        if self._key is not None and status == 200 and not _has(body, self._key):
            self._wrong.append(connection.due)

    def failed(self, due: float, kind: str) -> None:
        """The request that was due at a time has no answer."""
        self._note(due, kind)

    def lost(self, connection: Connection, after_failure: bool) -> None:
        """A connection is closed."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._loop.call_later(RECONNECT_S if after_failure else 0, self._replace)

    def _note(self, due: float, outcome: int | str) -> None:
        self._due.append(due)
        self._done.append(time.perf_counter())
        self._outcome.append(outcome)


def _has(body: bytes, key: str) -> bool:
    try:
        answer = json.loads(body)
    except ValueError:
        return False
    return isinstance(answer, dict) and key in answer
