"""Buffered curves, written to MLflow by a thread."""

import atexit
import logging
import posixpath
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from raysys.imports import lazy_import

mlflow = lazy_import("mlflow")

log = logging.getLogger("raysys.tracking")

_EVERY_S = 2.0
_BATCH = 1000  # MLflow's limit of one request
_MAX_BUFFERED = 200_000


class Point(NamedTuple):
    """One measurement of a curve."""

    name: str
    value: float
    step: int
    moment_ms: int


class Curves:
    """The curves of one run.

    Points are written every two seconds. A point at a step that its curve has reached is dropped,
    so that steps repeated after a resume appear once; the last step of an earlier run is read from
    MLflow. Points that an unreachable server did not take are kept, at most 200,000, and retried.
    """

    def __init__(self, connect: Callable[[], Any], run_id: str, *, new: bool) -> None:
        self._connect, self._run_id, self._new = connect, run_id, new
        self._last: dict[str, tuple[int, float] | None] = {}
        self._waiting: list[Point] = []
        self._guard, self._writing = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self._writer: threading.Thread | None = None
        self._repeated: dict[Callable[[], None], float] = {}
        self._warned = False

    def add(self, points: Iterable[Point]) -> None:
        """Buffer points."""
        with self._guard:
            self._waiting.extend(points)
            del self._waiting[:-_MAX_BUFFERED]
            self._start()

    def repeat(self, action: Callable[[], None], every_s: float) -> None:
        """Call a function soon, then at an interval and at the end; it may add points."""
        with self._guard:
            self._repeated[action] = every_s
            self._start()

    def last(self, name: str) -> tuple[int, float] | None:
        """Step and value of a curve's last written point."""
        if name not in self._last:
            history = [] if self._new else self._connect().get_metric_history(self._run_id, name)
            ends = [(point.step, point.timestamp, point.value) for point in history]
            self._last[name] = (max(ends)[0], max(ends)[2]) if ends else None
        return self._last[name]

    def flush(self) -> None:
        """Write the buffered points now; a failure is a warning."""
        with self._writing:
            with self._guard:
                points, self._waiting = self._waiting, []
            try:
                while points:
                    self._write(points[:_BATCH])
                    points = points[_BATCH:]
                self._warned = False
            except Exception as error:  # any failure of the server: the run itself goes on
                with self._guard:
                    self._waiting = points + self._waiting
                if not self._warned:
                    log.warning("curves are buffered until MLflow accepts them: %s", error)
                self._warned = True

    def close(self) -> int:
        """Write the buffered points and end the thread; the number of points not written."""
        self._closed.set()
        if self._writer is not None:
            self._writer.join()
            atexit.unregister(self.close)
        self._writer = None
        self.flush()
        return len(self._waiting)

    def _start(self) -> None:
        if self._writer is None:
            self._closed.clear()
            self._writer = threading.Thread(target=self._run, name="raysys curves", daemon=True)
            self._writer.start()
            atexit.register(self.close)

    def _run(self) -> None:
        due: dict[Callable[[], None], float] = {}
        last = False
        while True:
            now = time.monotonic()
            for action, every_s in list(self._repeated.items()):
                if last or now >= due.get(action, now):
                    action()
                    due[action] = now + every_s
            if last:
                return
            if self._waiting:
                self.flush()
            last = self._closed.wait(_EVERY_S)

    def _write(self, points: list[Point]) -> None:
        fresh = dict(self._last)
        batch = []
        for point in points:
            name = safe_name(point.name)
            if name not in fresh:
                fresh[name] = self.last(name)
            reached = fresh[name]
            if reached is None or point.step > reached[0]:
                batch.append(mlflow.entities.Metric(name, point.value, point.moment_ms, point.step))
                fresh[name] = (point.step, point.value)
        if batch:
            self._connect().log_batch(self._run_id, metrics=batch)
        self._last = fresh


def safe_name(name: str) -> str:
    """A name that MLflow accepts: 250 letters, digits and `_-. :/`, and not a parent path."""
    name = re.sub(r"[^\w\-. :/]", "_", name)[:250]
    if posixpath.normpath(name) != name or name.startswith((".", "/")):
        name = re.sub(r"^\.+|/", "_", name)
    return name
