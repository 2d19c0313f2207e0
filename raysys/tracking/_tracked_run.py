"""A run in MLflow that is written to."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.tracking._curves import Curves, Point, log, safe_name
from raysys.tracking._tracking_server import Place, connect, write_pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa

    from raysys.storage import Storage

RESULTS = "raysys.results"
SYSTEM = "system/"  # MLflow's page of a run shows metrics of this prefix apart
_MOST_TAGS = 100  # at once
_MOST_CHARACTERS = 5000
_MOST_ROWS = 1000


class TrackedRun:
    """A run in MLflow; `open_run` makes it.

    Curves are gathered and written every two seconds by a thread, so that `log` costs
    microseconds. Once a run is open, a server that is away costs a warning and never the work. A
    step of a curve is recorded once: what is logged at a step that the curve has reached, as
    after a resume, is left out. A run can be pickled and written to from where it arrives; each
    curve should come from one process.

    Attributes:
        run_id: MLflow's.
        uri: Of the MLflow server or database.
    """

    def __init__(self, place: Place, run_id: str, *, new: bool = False) -> None:
        """Hold a run; nothing is contacted before something is logged.

        Args:
            place: The server or database.
            run_id: MLflow's.
            new: It has no curves yet that would have to be looked up.
        """
        self.run_id, self.uri = run_id, place.uri
        self._place = place
        self._curves = Curves(lambda: connect(place.uri), run_id, new=new)

    def __reduce__(self) -> tuple[Any, ...]:
        return TrackedRun, (self._place, self.run_id)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of each name.

        Args:
            metrics: By name; NaN is kept as it is.
            step: Rises; up to a curve's last recorded step nothing is recorded again.
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
        """Record what is known now, as text by which runs can be searched."""
        from mlflow.entities import RunTag

        entries = [RunTag(safe_name(name), text(value)) for name, value in tags.items()]
        for start in range(0, len(entries), _MOST_TAGS):
            part = entries[start : start + _MOST_TAGS]
            self._try(partial(_log_tags, run_id=self.run_id, tags=part))

    def log_rows(self, name: str, rows: pa.Table) -> None:
        """Keep a sample of rows, such as predictions; MLflow's page of the run shows it.

        Args:
            name: A later sample of that name replaces it.
            rows: Any columns. Of more than 1,000 rows as many are kept, at even distances.
                Numbers, text, booleans and lists are read back as they are, NaN and infinities
                as null, all else as text.
        """
        if rows.num_rows > _MOST_ROWS:
            rows = rows.take(np.linspace(0, rows.num_rows - 1, _MOST_ROWS).astype(np.int64))
        columns = [column.to_pylist() for column in rows.columns]
        data = [[_plain(value) for value in row] for row in zip(*columns, strict=True)]
        table = {"columns": rows.column_names, "data": data}
        self._try(lambda client: client.log_dict(self.run_id, table, f"{safe_name(name)}.json"))

    def watch(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Record what a meter reads, every ten seconds until the end, over the run's seconds.

        Args:
            read: Such as `ProcessMeter().read`; its names get the prefix `system/`.
        """
        started_s: float | None = None

        def measure() -> None:
            nonlocal started_s
            if started_s is None:
                started_s = connect(self.uri).get_run(self.run_id).info.start_time / 1000
            measured = {f"{SYSTEM}{name}": value for name, value in read().items()}
            self.log(measured, int(time.time() - started_s))

        self._curves.watch(lambda: self._try(lambda _: measure()))

    def nest(self, folder: Storage) -> None:
        """Make a folder this run's: runs opened with it as their storage are its children."""
        write_pointer(folder, self._place, self.run_id)

    def flush(self) -> None:
        """Write the curves' waiting points now."""
        self._curves.flush()

    def end(self, status: str, metrics: Mapping[str, float] | None = None) -> None:
        """Close the run.

        Args:
            status: FINISHED, FAILED or KILLED.
            metrics: Results by name. One with the name of a curve that did not end with this
                value is recorded as `NAME result`.
        """
        lost = self._curves.close()
        if lost:
            log.warning("%d points of curves of run %s are lost", lost, self.run_id)
        self._try(lambda client: self._end(client, status, metrics or {}))

    def _end(self, client: Any, status: str, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric, RunTag

        earlier = client.get_run(self.run_id).data.tags.get(RESULTS, "").split("\n")
        names, points, now = [], [], _now_ms()
        for given, value in metrics.items():
            name = safe_name(given)
            last = self._curves.last(name)
            if last is not None and name not in earlier and not _same(last[1], value):
                name = f"{name} result"
                last = self._curves.last(name)
            names.append(name)
            if last is None or not _same(last[1], value):
                # After an earlier result, so that MLflow takes this one for the latest.
                step = 0 if last is None else last[0] + 1
                points.append(Metric(name, float(value), now, step))
        tags = [RunTag(RESULTS, "\n".join(names))] if names else []
        client.log_batch(self.run_id, metrics=points, tags=tags)
        client.set_terminated(self.run_id, status)

    def _try(self, action: Callable[[Any], None]) -> None:
        """Do something with MLflow's client; a failure is a warning."""
        try:
            action(connect(self.uri))
        except Exception as error:  # whatever a server may say: the run itself goes on
            log.warning("MLflow did not record a part of run %s: %s", self.run_id, error)


def _log_tags(client: Any, run_id: str, tags: list[Any]) -> None:
    client.log_batch(run_id, tags=tags)


def text(value: object) -> str:
    """A setting or a tag as MLflow keeps it."""
    return str(value)[:_MOST_CHARACTERS]


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _plain(value: Any) -> Any:
    """A value that JSON has."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _now_ms() -> int:
    return int(time.time() * 1000)
