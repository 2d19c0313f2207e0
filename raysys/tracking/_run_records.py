"""Runs read back from MLflow."""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysys.arguments import checked
from raysys.errors import RaysysError, StorageError
from raysys.imports import lazy_import
from raysys.tracking._curves import safe_name
from raysys.tracking._open_run import PARENT
from raysys.tracking._tracked_run import ALIVE, LOST_S, RESULTS, SYSTEM
from raysys.tracking._tracking_server import (
    connect,
    shown_uri,
    target_of,
    tracking_uri,
    unavailable,
)

if TYPE_CHECKING:
    from raysys.storage import Storage

mlflow = lazy_import("mlflow")

_PAGE = 1000
_MAX_SHOWN = 5


@dataclass(frozen=True)
class RunRecord:
    """A recorded run.

    Attributes:
        id: MLflow's run id.
        experiment: MLflow experiment; a child's is that of its parent.
        status: RUNNING, FINISHED, FAILED or KILLED, as a run is 60 s after its driver was lost; the
            clocks of both machines may differ by some seconds.
        seconds: Duration; None before the end.
        settings: Parameters, as text by name.
        tags: Tags, as text by name, without MLflow's and raysys' own.
        metrics: Final values: results, and the last values of curves.
        results: Names of the metrics that are results.
        parent: Id of the parent run, or None.
    """

    id: str
    name: str
    experiment: str
    status: str
    started: datetime
    seconds: float | None
    settings: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    results: list[str]
    parent: str | None

    @property
    def curves(self) -> list[str]:
        """Names of the metrics that are neither results nor system metrics."""
        return [
            name
            for name in sorted(self.metrics)
            if name not in self.results and not name.startswith(SYSTEM)
        ]


class Runs:
    """Runs on a storage root's MLflow server.

    Example:
        runs = Runs(Storage())
        best = max(runs.newest(100), key=lambda run: run.metrics.get("auc", 0.0))
        steps, losses = runs.curve(best, "loss")
    """

    @checked
    def __init__(self, storage: Storage) -> None:
        """Connect to the server.

        Raises:
            UnavailableError: MLflow does not answer.
            StorageError: The root is remote and MLFLOW_TRACKING_URI is not set.
        """
        self.uri = tracking_uri(storage)
        self._client = connect(self.uri)
        experiments = self._pages(self._client.search_experiments)
        self._experiments = {e.experiment_id: e.name for e in experiments}

    def newest(self, limit: int) -> list[RunRecord]:
        """Top-level runs, newest first."""
        return self._search(f"tags.{PARENT} IS NULL", limit)

    def descendants(self, records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
        """Children, and their children, by parent id, oldest first."""
        if not records:
            return {}
        since = int(min(record.started for record in records).timestamp() * 1000)
        children: dict[str, list[RunRecord]] = {}
        query = f"tags.{PARENT} IS NOT NULL AND attributes.start_time >= {since}"
        for record in reversed(self._search(query)):
            children.setdefault(str(record.parent), []).append(record)
        return children

    def children(self, record: RunRecord) -> list[RunRecord]:
        """Child runs, oldest first."""
        return self._search(f"tags.{PARENT} = '{record.id}'")[::-1]

    @checked
    def find(self, name: str) -> RunRecord:
        """The run of a name.

        Args:
            name: Name of a run or an unambiguous prefix of it, `PARENT/NAME` of a child, or an id.

        Raises:
            RaysysError: No run matches, or several do.
        """
        matches = self._named(name)
        if not matches and "/" in name:
            parent, _, child = name.rpartition("/")
            matches = _matching(self.children(self.find(parent)), child)
        if len(matches) == 1:
            return matches[0]
        if not matches:
            raise RaysysError(
                f"no run {name!r} in {shown_uri(self.uri)}: `raysys runs --all` lists them"
            )
        shown = "; ".join(
            f"{run.name} of {run.started:%F %T}, {run.id}" for run in matches[:_MAX_SHOWN]
        )
        more = f" and {len(matches) - _MAX_SHOWN} more" if len(matches) > _MAX_SHOWN else ""
        raise RaysysError(
            f"{len(matches)} runs match {name!r}: {shown}{more}. Give more of the name, "
            "PARENT/NAME, or the id"
        )

    def curve(self, record: RunRecord, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, by ascending step."""
        history = self._client.get_metric_history(record.id, metric)
        values = {point.step: point.value for point in sorted(history, key=lambda p: p.timestamp)}
        return sorted(values), [values[step] for step in sorted(values)]

    def samples(self, record: RunRecord) -> list[str]:
        """Names of the row samples that a run logged."""
        files = [file.path for file in self._client.list_artifacts(record.id)]
        return [file.removesuffix(".json") for file in files if file.endswith(".json")]

    def rows(self, record: RunRecord, name: str) -> pa.Table:
        """A row sample, such as predictions, that a run logged.

        Raises:
            RaysysError: The run has no such sample.
            StorageError: Its file is damaged.
        """
        try:
            path = self._client.download_artifacts(record.id, f"{safe_name(name)}.json")
        except (mlflow.exceptions.MlflowException, OSError) as error:
            samples = ", ".join(self.samples(record)) or "none"
            raise RaysysError(
                f"run {record.name!r} has no row sample {name!r}; it has: {samples}"
            ) from error
        try:
            sample = json.loads(Path(path).read_text())
            names, rows = sample["columns"], sample["data"]
            columns = zip(*rows, strict=True) if rows else [[] for _ in names]
            return pa.table(dict(zip(names, map(pa.array, map(list, columns)), strict=True)))
        except (ValueError, LookupError, TypeError) as error:
            raise StorageError(
                f"row sample {name!r} of run {record.name!r} is damaged ({error}): restore it from "
                "a backup"
            ) from error

    def _named(self, name: str) -> list[RunRecord]:
        # A filter cannot contain both kinds of quotes, and `_` and `%` are wildcards in it.
        start = re.split("['\"\\\\]", name)[0]
        matches = _matching(self._search(f"attributes.run_name LIKE '{start}%'"), name)
        if not matches and re.fullmatch("[0-9a-f]{32}", name):
            matches = self._search(f"attributes.run_id = '{name}'")
        return matches

    def _search(self, query: str, limit: int | None = None) -> list[RunRecord]:
        page = functools.partial(
            self._client.search_runs, list(self._experiments), query,
            max_results=min(limit or _PAGE, _PAGE), order_by=["attributes.start_time DESC"],
        )  # fmt: skip
        return [self._record(run) for run in self._pages(page, limit)]

    def _end(self, run: Any) -> tuple[str, int | None]:
        """Status and end, in Unix ms, of a run; one without signs of life ends with its last."""
        info, alive_ms = run.info, int(run.data.tags.get(ALIVE, 0))
        if info.status != "RUNNING":
            return info.status, info.end_time
        if not 0 < alive_ms < (time.time() - LOST_S) * 1000:
            return info.status, None
        with suppress(mlflow.exceptions.MlflowException):  # who reads may not be allowed to write
            self._client.set_terminated(info.run_id, "KILLED", end_time=alive_ms)
        return "KILLED", alive_ms

    def _pages(self, page: Callable[..., Any], limit: int | None = None) -> list[Any]:
        """Entries of all pages of a search, at most `limit`."""
        entries: list[Any] = []
        token = None
        try:
            while True:
                batch = page(page_token=token)
                entries += batch
                token = batch.token
                if not token or (limit is not None and len(entries) >= limit):
                    return entries[:limit]
        except mlflow.exceptions.MlflowException as error:
            raise unavailable(self.uri, error) from error

    def _record(self, run: Any) -> RunRecord:
        info, data = run.info, run.data
        status, end_ms = self._end(run)
        hidden = ("mlflow.", "raysys.")
        tags = {key: value for key, value in data.tags.items() if not key.startswith(hidden)}
        tags["commit"] = data.tags.get("mlflow.source.git.commit", "")
        results = data.tags.get(RESULTS)
        return RunRecord(
            id=info.run_id,
            name=info.run_name,
            experiment=self._experiments[info.experiment_id],
            status=status,
            started=datetime.fromtimestamp(info.start_time / 1000, UTC),
            seconds=None if end_ms is None else (end_ms - info.start_time) / 1000,
            settings=dict(data.params),
            tags=tags,
            metrics=dict(data.metrics),
            results=results.split("\n") if results else [],
            parent=data.tags.get(PARENT),
        )


@checked
def run_status(folder: Storage) -> str:
    """Status of the run to which a folder belongs (`TrackedRun.nest`), see `RunRecord`.

    Raises:
        RaysysError: The folder belongs to no run, or MLflow does not answer.
    """
    run = target_of(folder).parent
    if run is None:
        raise RaysysError(f"{folder.root} belongs to no recorded run")
    return Runs(folder).find(run).status


def _matching(records: Sequence[RunRecord], name: str) -> list[RunRecord]:
    """Records of that name, else those whose names start with it."""
    exact = [record for record in records if record.name == name]
    return exact or [record for record in records if record.name.startswith(name)]
