"""Graphs that the tests deploy, and clients of them; replicas import this, so it is light."""

import asyncio
import ctypes
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from pydantic import BaseModel, Field

from raysys.errors import DataError
from raysys.serve import (
    Array,
    Graph,
    IndexSearch,
    LazyObject,
    ModelPool,
    Placement,
    bind_inputs,
    current_requests,
)
from raysys.storage import Storage

PATIENCE_S = 60.0
_FEW_CPUS = 0.1


# --- graphs ---


class Question(BaseModel):
    x: int
    k: int = Field(1, ge=1, le=5)


def _doubled(x: np.ndarray) -> np.ndarray:
    time.sleep(0.03)  # a model's time, in which the next batch gathers
    if (x == -1).any():
        raise DataError("x: -1 is not answered")
    if (x == -2).any():
        raise ZeroDivisionError("a node that fails")
    return 2 * x


def _double_answer(x: np.ndarray, k: np.ndarray, doubled: np.ndarray) -> dict[str, np.ndarray]:
    return {"doubled": k * doubled, "batch": np.full(len(x), len(x))}


def double_graph() -> Graph:
    """Twice x, with the size of the batch; x = -1 is bad data, x = -2 a failure."""
    return Graph(
        inputs=Question,
        nodes={"doubled": _doubled, "answer": _double_answer},
        output="answer",
    )


def _base(x: np.ndarray) -> np.ndarray:
    return x + 1


def _left(base: np.ndarray) -> np.ndarray:
    if (base == 0).any():
        raise DataError("x: -1 is not answered")
    if (base == -1).any():
        raise ZeroDivisionError("a node that fails")
    return 10 * base


def _right(base: np.ndarray, x: np.ndarray) -> dict[str, Any]:
    time.sleep(0.03)  # so that there is a batch under way when a replica dies
    if (x == -3).any():
        raise DataError("x: -3 is not answered")
    return {"product": base * x, "pid": os.getpid()}


def _branches_answer(left: np.ndarray, right: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        "value": left - right["product"],
        "pid": np.full(len(left), os.getpid()),
        "placed_pid": np.full(len(left), right["pid"]),
    }


def branches_graph() -> Graph:
    """Two branches that do not wait for each other, one of them in a deployment of its own.

    x = -1 is bad data to the entry, x = -3 to the other, x = -2 a failure.
    """
    return Graph(
        inputs={"x": Array("int64")},
        nodes={"base": _base, "left": _left, "right": _right, "answer": _branches_answer},
        output="answer",
        placement={"right": Placement(cpus=_FEW_CPUS, replicas=2)},
    )


def _scores(vector: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return (vector / (1.0 + np.abs(weight[:, None] / 2))).astype(np.float32)  # finite always


def _label(name: np.ndarray, flag: np.ndarray) -> np.ndarray:
    pairs = zip(name, flag, strict=True)
    labels = [text[::-1] if backwards else text for text, backwards in pairs]
    return np.array(labels, object)


def _mixed_answer(
    scores: np.ndarray, label: np.ndarray, weight: np.ndarray, flag: np.ndarray
) -> dict[str, np.ndarray]:
    return {
        "scores": scores,
        "turned": np.stack([scores, -scores], axis=2).transpose(0, 2, 1),  # not contiguous
        "label": label,
        "next": weight + 1,
        "unset": ~flag,
        "pid": np.full(len(flag), os.getpid()),
    }


def mixed_graph() -> Graph:
    """All kinds of columns; every answer but `pid` follows from its own row."""
    return Graph(
        inputs={
            "vector": Array("float32", (3,)),
            "weight": Array("int64"),
            "name": Array("str"),
            "flag": Array("bool"),
        },
        nodes={"scores": _scores, "label": _label, "answer": _mixed_answer},
        output="answer",
    )


class Stamp:
    """Nodes that say which version they are of."""

    def __init__(self, version: int) -> None:
        self._version = version

    def near(self, x: np.ndarray) -> np.ndarray:
        return np.full(len(x), self._version)

    def far(self, x: np.ndarray) -> dict[str, np.ndarray]:
        requests = current_requests() or [None] * len(x)
        if len(requests) != len(x):
            raise ValueError(f"{len(requests)} requests for {len(x)} rows")
        return {
            "version": np.full(len(x), self._version),
            "request": np.array([one.request_id if one else "" for one in requests], object),
            "trace": np.array([one.traceparent if one else "" for one in requests], object),
        }


class Broken:
    """A model that cannot be loaded."""

    def __init__(self) -> None:
        raise OSError("no weights at that path")

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x


def _stamped(x: np.ndarray, near: np.ndarray, far: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "x": x,
        "near": near,
        "far": far["version"],
        "request": far["request"],
        "trace": far["trace"],
        "pid": np.full(len(x), os.getpid()),
    }


def stamped_graph(version: int, *, broken: bool = False) -> Graph:
    """Two deployments that both say their version, and whose request they answered."""
    stamp = LazyObject(Stamp, version)
    near = LazyObject(Broken) if broken else stamp.near
    return Graph(
        inputs={"x": Array("int64")},
        nodes={"near": near, "far": stamp.far, "answer": _stamped},
        output="answer",
        placement={"far": Placement(cpus=_FEW_CPUS)},
    )


def _held(ms: np.ndarray, gate: np.ndarray) -> dict[str, np.ndarray]:
    time.sleep(ms.max() / 1000)
    for name in filter(None, gate):
        Path(f"{name}.held").touch()
        given_up = time.monotonic() + PATIENCE_S
        while not Path(name).exists() and time.monotonic() < given_up:
            time.sleep(0.01)
    return {"ms": ms, "pid": np.full(len(ms), os.getpid())}


def held_graph() -> Graph:
    """Takes as long as it is told, or until the file `gate` is there; `gate`.held says it waits."""
    return Graph(
        inputs={"ms": Array("int64"), "gate": Array("str")}, nodes={"held": _held}, output="held"
    )


class Counter:
    """Numbers its answers."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self._count += len(x)
        return np.arange(self._count - len(x), self._count)


def counted_graph() -> Graph:
    """An answer that no other has."""
    return Graph(inputs={"x": Array("int64")}, nodes={"count": LazyObject(Counter)}, output="count")


class Linear:
    """A model in a file: weights `(4,)`."""

    def __init__(self, folder: Path) -> None:
        self._weights = np.load(folder / "weights.npy")

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x * self._weights).sum(axis=1, dtype=np.float32)


class LinearPool(ModelPool):
    """A pool that says how many models it holds."""

    def sizes(self, own: np.ndarray) -> np.ndarray:
        return np.full(len(own), len(self._loaded))


def _stored_answer(
    base: np.ndarray, own: np.ndarray, held: np.ndarray, near: tuple[np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
    return {"base": base, "own": own, "held": held, "ids": near[0], "scores": near[1]}


def stored_graph(base: LazyObject, storage: Storage, index: str) -> Graph:
    """A stored model, a pool of at most three others, and an index of two shards."""
    pool = LazyObject(LinearPool, Linear, storage, "own", max_loaded=3)
    return Graph(
        inputs={"model": Array("str"), "x": Array("float32", (4,))},
        nodes={
            "base": base,
            "own": pool,
            "held": pool.sizes,
            "near": bind_inputs(LazyObject(IndexSearch, index, 3), vectors="x"),
            "answer": _stored_answer,
        },
        output="answer",
    )


class Shelf:
    """Titles by number; what is not there is called nothing."""

    def __init__(self) -> None:
        self._titles: dict[int, str] = {}

    def put(self, number: np.ndarray, title: np.ndarray) -> dict[str, np.ndarray]:
        self._titles.update(zip(number.tolist(), title.tolist(), strict=True))
        return {"put": number, "pid": np.full(len(number), os.getpid())}

    def find(self, number: np.ndarray) -> dict[str, Any]:
        titles = [self._titles.get(one, "nothing") for one in number.tolist()]
        return {"title": titles, "pid": np.full(len(number), os.getpid())}


def _far(number: np.ndarray) -> np.ndarray:
    return np.full(len(number), os.getpid())


def kinds_graph(*, is_complex: bool = False) -> Graph:
    """Rows with values that JSON lacks; complex numbers, which no protocol has, if asked."""

    def answer(x: np.ndarray) -> list[dict[str, Any]]:
        extra = {"z": 1j} if is_complex else {}
        return [
            {1: Decimal("1.10"), "set": {2, 1}, "at": np.datetime64("NaT"), "nan": np.nan, **extra}
            for _ in x
        ]

    return Graph(inputs={"x": Array("int64")}, nodes={"answer": answer}, output="answer")


def shelf_graphs() -> dict[str, Graph]:
    """Three actions: two share an object, the third has a node in a deployment of its own."""
    shelf, number = LazyObject(Shelf), Array("int64")
    return {
        "put": Graph(
            inputs={"number": number, "title": Array("str")},
            nodes={"shelf": shelf.put},
            output="shelf",
        ),
        "find": Graph(inputs={"number": number}, nodes={"shelf": shelf.find}, output="shelf"),
        "go-far": Graph(
            inputs={"number": number},
            nodes={"far": _far},
            output="far",
            placement={"far": Placement(cpus=_FEW_CPUS)},
        ),
    }


def _segfault() -> None:
    ctypes.string_at(0)


def _hold_interpreter() -> None:
    ctypes.PyDLL(None).sleep(30)  # without letting other threads run


def _raise(error: BaseException) -> None:
    raise error


DEEDS: dict[int, Callable[[], object]] = {
    1: lambda: os._exit(3),
    2: _segfault,
    3: lambda: _raise(SystemExit("bye")),
    4: lambda: _raise(KeyboardInterrupt()),
    5: lambda: _raise(asyncio.CancelledError()),
    6: lambda: time.sleep(30),
    7: _hold_interpreter,
    8: lambda: os.kill(os.getpid(), signal.SIGKILL),
}
"""What `hostile_graph` does, by the number in the request; other numbers do no harm."""


def hostile_graph() -> Graph:
    """x and the process; does one of `DEEDS` first."""

    def answer(x: np.ndarray) -> dict[str, np.ndarray]:
        for number in x.tolist():
            DEEDS.get(number, int)()
        return {"x": x, "pid": np.full(len(x), os.getpid())}

    return Graph(inputs={"x": Array("int64")}, nodes={"answer": answer}, output="answer")


# --- clients ---


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A keep-alive connection."""

    def __init__(self, url: str, timeout_s: float = PATIENCE_S) -> None:
        parts = urlsplit(url)
        assert parts.hostname == "127.0.0.1"
        self._path = parts.path
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)

    def post(
        self, body: Any, headers: Mapping[str, str] | None = None, path: str | None = None
    ) -> Reply:
        """Send bytes as they are and all else as JSON; to the URL's path if none is given."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, raw, {"content-type": "application/json", **(headers or {})})

    def ask(
        self,
        method: str,
        path: str | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        try:
            self._connection.request(method, path or self._path, body, dict(headers or {}))
            reply = self._connection.getresponse()
            lower = {name.lower(): value for name, value in reply.getheaders()}
            return Reply(reply.status, lower, reply.read())
        except (OSError, http.client.HTTPException):
            self._connection.close()  # the next request opens another
            raise

    def close(self) -> None:
        self._connection.close()


def post(url: str, body: Any, headers: Mapping[str, str] | None = None) -> Reply:
    """One request on a connection of its own."""
    client = Client(url)
    try:
        return client.post(body, headers)
    finally:
        client.close()


def get(url: str, headers: Mapping[str, str] | None = None) -> Reply:
    client = Client(url)
    try:
        return client.ask("GET", headers=headers)
    finally:
        client.close()


@dataclass
class Load:
    """Every answer and failure of a load, as it goes on.

    Attributes:
        replies: Number of the request and its answer, whatever the status.
        failures: What requests without an answer met.
    """

    replies: list[tuple[int, Reply]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def answers(self) -> list[Any]:
        """The JSON of all answers; fails unless every request so far got a 200."""
        replies = list(self.replies)
        assert not self.failures, self.failures[:5]
        bad = [(number, one.status, one.body) for number, one in replies if one.status != 200]
        assert not bad, (len(bad), len(replies), bad[:5])
        return [one.json for _, one in replies]

    def wait_for(self, more: int) -> None:
        """Let some more requests be answered."""
        wanted = len(self.replies) + more
        eventually(lambda: len(self.replies) >= wanted)


@contextmanager
def load(
    url: str, body: Callable[[int], Any], *, clients: int = 4, pause_s: float = 0.005
) -> Iterator[Load]:
    """Post on keep-alive connections until the block ends; requests are numbered from 0."""
    result, stop, lock = Load(), threading.Event(), threading.Lock()
    numbers = iter(range(100_000))  # a bound: no test needs more

    def run() -> None:
        client = Client(url)
        while not stop.is_set():
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            try:
                result.replies.append((number, client.post(body(number))))
            except (OSError, http.client.HTTPException) as error:
                result.failures.append(f"request {number}: {error!r}")
            stop.wait(pause_s)
        client.close()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield result
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)


def eventually(is_so: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Wait until something is so; what it gave comes back."""
    given_up = time.monotonic() + patience_s
    while not (found := is_so()):
        assert time.monotonic() < given_up, f"not so within {patience_s:g} s"
        time.sleep(0.05)
    return found


def kill(pid: int) -> None:
    """End a replica at once."""
    assert pid != os.getpid()
    os.kill(pid, signal.SIGKILL)
