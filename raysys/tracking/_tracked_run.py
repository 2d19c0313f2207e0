"""A run that records to MLflow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.errors import RaysysError
from raysys.imports import lazy_import
from raysys.tracking._curves import Curves, Point, log, safe_name
from raysys.tracking._tracking_server import TrackingTarget, connect, write_pointer

if TYPE_CHECKING:
    import pyarrow as pa

    from raysys.storage import Storage

mlflow = lazy_import("mlflow")

RESULTS = "raysys.results"
ALIVE = "raysys.alive"  # Unix time of the last sign of life in ms
LOST_S = 60.0  # without a sign of life
_SIGN_EVERY_S = 20.0
_WATCH_EVERY_S = 10.0
SYSTEM = "system/"  # MLflow's page of a run shows metrics of this prefix apart
_MAX_TAGS = 100  # of one request
_MAX_CHARACTERS = 5000
_MAX_ROWS = 1000


class TrackedRun:
    """A run in MLflow; `open_run` creates it.

    Curves are buffered and written every two seconds by a thread, so that `log` costs
    microseconds. Once a run is open, an unreachable server costs a warning and never the work. A
    step of a curve is recorded once: a point at a step that the curve has reached, as after a
    resume, is dropped. A run can be pickled and written to from other processes; each curve should
    come from one process.

    Attributes:
        run_id: MLflow's run id.
        uri: URI of the MLflow server or database.
    """

    def __init__(self, place: TrackingTarget, run_id: str, *, new: bool = False) -> None:
        """Open a handle; the server is first contacted when something is logged.

        Of a `new` run, which has no curves yet, none is looked up.
        """
        self.run_id, self.uri = run_id, place.uri
        self._place = place
        self._curves = Curves(lambda: connect(place.uri), run_id, new=new)

    def __reduce__(self) -> tuple[Any, ...]:
        return TrackedRun, (self._place, self.run_id)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of each name.

        Args:
            metrics: Values by name; NaN stays NaN.
            step: Ascending step; points up to a curve's last recorded step are dropped.
        """
        now = _now_ms()
        self._curves.add([Point(name, float(value), step, now) for name, value in metrics.items()])

    def log_curve(self, name: str, values: Sequence[float]) -> None:
        """Record a whole curve, from step 1."""
        now = _now_ms()
        self._curves.add(
            [Point(name, float(value), step, now) for step, value in enumerate(values, 1)]
        )

    def log_tags(self, tags: Mapping[str, object]) -> None:
        """Record tags, as text by which runs can be searched."""
        entries = [
            mlflow.entities.RunTag(safe_name(name), text(value)) for name, value in tags.items()
        ]
        for start in range(0, len(entries), _MAX_TAGS):
            part = entries[start : start + _MAX_TAGS]
            self._try(partial(mlflow.MlflowClient.log_batch, run_id=self.run_id, tags=part))

    def log_rows(self, name: str, rows: pa.Table) -> None:
        """Record a sample of rows, such as predictions, shown on MLflow's page of the run.

        Args:
            name: Name of the sample; a later one of that name replaces it.
            rows: Any columns; 1,000 evenly spaced rows if there are more. Numbers, text, booleans
                and lists read back unchanged, NaN and infinities as null, other types as text.
        """
        if rows.num_rows > _MAX_ROWS:
            rows = rows.take(np.linspace(0, rows.num_rows - 1, _MAX_ROWS).astype(np.int64))
        columns = [column.to_pylist() for column in rows.columns]
        data = [[_plain(value) for value in row] for row in zip(*columns, strict=True)]
        table = {"columns": rows.column_names, "data": data}
        self._try(lambda client: client.log_dict(self.run_id, table, f"{safe_name(name)}.json"))

    def watch(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Record a meter's readings every ten seconds until the end, over the run's seconds.

        Args:
            read: Function such as `ProcessMeter().read`; its names get the prefix `system/`.
        """
        started_s: float | None = None

        def measure() -> None:
            nonlocal started_s
            if started_s is None:
                started_s = connect(self.uri).get_run(self.run_id).info.start_time / 1000
            measured = {f"{SYSTEM}{name}": value for name, value in read().items()}
            self.log(measured, int(time.time() - started_s))

        self._curves.repeat(lambda: self._try(lambda _: measure()), _WATCH_EVERY_S)

    def keep_alive(self) -> None:
        """Record a sign of life every 20 s until the end: a run without one for 60 s is lost.

        A process that was suspended for longer makes the run RUNNING again.
        """
        signed_s = time.monotonic()

        def sign() -> None:
            nonlocal signed_s
            late = time.monotonic() - signed_s > LOST_S
            try:
                client = connect(self.uri)
                client.set_tag(self.run_id, ALIVE, str(_now_ms()))
                if late:
                    client.update_run(self.run_id, status="RUNNING")
            except (RaysysError, mlflow.exceptions.MlflowException, OSError) as error:
                log.info("no sign of life of run %s: %s", self.run_id, error)
            else:
                signed_s = time.monotonic()

        self._curves.repeat(sign, _SIGN_EVERY_S)

    def nest(self, folder: Storage) -> None:
        """Make runs that are opened with a folder as their storage children of this run."""
        write_pointer(folder, self._place, self.run_id)

    def flush(self) -> None:
        """Write the curves' buffered points now."""
        self._curves.flush()

    def end(self, status: str, metrics: Mapping[str, float] | None = None) -> None:
        """Close the run.

        Args:
            status: FINISHED, FAILED or KILLED.
            metrics: Results by name. A result named as a curve whose last value differs is recorded
                as `NAME result`.
        """
        if lost := self._curves.close():
            log.warning("%d points of curves of run %s are lost", lost, self.run_id)
        self._try(lambda client: self._end(client, status, metrics or {}))

    def _end(self, client: Any, status: str, metrics: Mapping[str, float]) -> None:
        earlier = client.get_run(self.run_id).data.tags.get(RESULTS, "").split("\n")
        names, points, now = [], [], _now_ms()
        for metric, value in metrics.items():
            name = safe_name(metric)
            last = self._curves.last(name)
            if last is not None and name not in earlier and not _same(last[1], value):
                name = f"{name} result"
                last = self._curves.last(name)
            names.append(name)
            if last is None or not _same(last[1], value):
                # One step after an earlier result, so that MLflow takes this one as the latest.
                step = 0 if last is None else last[0] + 1
                points.append(mlflow.entities.Metric(name, float(value), now, step))
        tags = [mlflow.entities.RunTag(RESULTS, "\n".join(names))] if names else []
        client.log_batch(self.run_id, metrics=points, tags=tags)
        client.set_terminated(self.run_id, status)

    def _try(self, action: Callable[[Any], None]) -> None:
        """Call a function with MLflow's client; a failure is a warning."""
        try:
            action(connect(self.uri))
        except Exception as error:  # any failure of the server: the run itself goes on
            log.warning("MLflow did not record part of run %s: %s", self.run_id, error)


def text(value: object) -> str:
    """A parameter or tag as text of a length that MLflow accepts."""
    return str(value)[:_MAX_CHARACTERS]


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _now_ms() -> int:
    return int(time.time() * 1000)
