"""Runs in MLflow as they are read back."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysys.errors import RaysysError
from raysys.tracking._curves import safe_name
from raysys.tracking._open_run import PARENT
from raysys.tracking._tracked_run import RESULTS, SYSTEM
from raysys.tracking._tracking_server import connect, shown_uri, tracking_uri, unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.storage import Storage

_PAGE = 1000
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Record:
    """A run as MLflow knows it.

    Attributes:
        id: MLflow's.
        name: As the run was opened with.
        experiment: MLflow's experiment; of a child, that of its parent.
        status: RUNNING, FINISHED, FAILED or KILLED. RUNNING is also said of a run whose driver
            died.
        started: When it was first opened.
        seconds: From there to its end; None without one.
        settings: Text by name.
        tags: Text by name, those of MLflow itself and of raysys' bookkeeping left out.
        metrics: Results, and the last values of curves.
        results: Names of the metrics that the run ended with.
        parent: Id of the run that it is part of, or None.
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
        """Names of the metrics that are no results and no readings of a meter."""
        return [
            name
            for name in sorted(self.metrics)
            if name not in self.results and not name.startswith(SYSTEM)
        ]


class Runs:
    """The runs of a storage root's MLflow server.

    Example:
        runs = Runs(Storage())
        best = max(runs.newest(100), key=lambda run: run.metrics.get("auc", 0.0))
        steps, losses = runs.curve(best, "loss")
    """

    def __init__(self, storage: Storage) -> None:
        """Connect to the server.

        Raises:
            UnavailableError: MLflow does not answer.
            StorageError: The root is remote and no server is named.
        """
        from mlflow.exceptions import MlflowException

        self.uri = tracking_uri(storage)
        self._client = connect(self.uri)
        try:
            found = _all_pages(lambda token: self._client.search_experiments(page_token=token))
        except MlflowException as error:
            raise unavailable(self.uri, error) from error
        self._experiments = {one.experiment_id: one.name for one in found}

    def newest(self, limit: int) -> list[Record]:
        """The runs that are no other's children, the newest first."""
        return self._search(f"tags.{PARENT} IS NULL", limit)

    def descendants(self, records: Sequence[Record]) -> dict[str, list[Record]]:
        """Children by their parent's id, and theirs, the oldest first."""
        if not records:
            return {}
        since = int(min(record.started for record in records).timestamp() * 1000)
        found: dict[str, list[Record]] = {}
        wanted = f"tags.{PARENT} IS NOT NULL AND attributes.start_time >= {since}"
        for one in reversed(self._search(wanted)):
            found.setdefault(str(one.parent), []).append(one)
        return found

    def children(self, record: Record) -> list[Record]:
        """The runs that are part of a run, the oldest first."""
        return self._search(f"tags.{PARENT} = '{record.id}'")[::-1]

    def find(self, name: str) -> Record:
        """The run that a name means.

        Args:
            name: Of a run, or the beginning that no other's name has; `PARENT/NAME` for one that
                is part of another; or MLflow's id.

        Raises:
            RaysysError: There is none, or more than one.
        """
        found = self._named(name)
        if not found and "/" in name:
            parent, _, rest = name.rpartition("/")
            children = self.children(self.find(parent))
            found = _matching(children, rest)
        if len(found) == 1:
            return found[0]
        if not found:
            raise RaysysError(
                f"no run {name!r} in {shown_uri(self.uri)}: `raysys runs --all` lists them"
            )
        shown = "; ".join(
            f"{one.name} of {one.started:%F %T}, {one.id}" for one in found[:_MOST_SHOWN]
        )
        more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
        raise RaysysError(
            f"{len(found)} runs are named {name!r} or begin so: {shown}{more}. Give more of the "
            "name, PARENT/NAME, or the id"
        )

    def curve(self, record: Record, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, in the order of the steps."""
        history = self._client.get_metric_history(record.id, metric)
        known = {
            point.step: point.value for point in sorted(history, key=lambda one: one.timestamp)
        }
        return sorted(known), [known[step] for step in sorted(known)]

    def samples(self, record: Record) -> list[str]:
        """Names of the samples of rows that a run kept."""
        files = [file.path for file in self._client.list_artifacts(record.id)]
        return [file.removesuffix(".json") for file in files if file.endswith(".json")]

    def rows(self, record: Record, name: str) -> pa.Table:
        """A sample of rows, such as predictions, that a run kept."""
        from mlflow.exceptions import MlflowException

        try:
            path = self._client.download_artifacts(record.id, f"{safe_name(name)}.json")
        except (MlflowException, OSError) as error:
            known = ", ".join(self.samples(record)) or "none"
            raise RaysysError(
                f"run {record.name!r} kept no rows {name!r}; it has: {known}"
            ) from error
        kept = json.loads(Path(path).read_text())
        columns = zip(*kept["data"], strict=True) if kept["data"] else [[] for _ in kept["columns"]]
        return pa.table(dict(zip(kept["columns"], map(pa.array, map(list, columns)), strict=True)))

    def _named(self, name: str) -> list[Record]:
        # A filter cannot hold both kinds of quotes, and `_` and `%` stand for others in it.
        start = re.split("['\"\\\\]", name)[0]
        found = _matching(self._search(f"attributes.run_name LIKE '{start}%'"), name)
        if not found and re.fullmatch("[0-9a-f]{32}", name):
            found = self._search(f"attributes.run_id = '{name}'")
        return found

    def _search(self, wanted: str, limit: int | None = None) -> list[Record]:
        from mlflow.exceptions import MlflowException

        try:
            found = _all_pages(
                lambda token: self._client.search_runs(
                    list(self._experiments),
                    wanted,
                    max_results=min(limit or _PAGE, _PAGE),
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                ),
                limit,
            )
        except MlflowException as error:
            raise unavailable(self.uri, error) from error
        return [self._record(one) for one in found]

    def _record(self, run: Any) -> Record:
        info, data = run.info, run.data
        ended = None if info.end_time is None else (info.end_time - info.start_time) / 1000
        hidden = ("mlflow.", "raysys.")
        tags = {key: value for key, value in data.tags.items() if not key.startswith(hidden)}
        tags["commit"] = data.tags.get("mlflow.source.git.commit", "")
        results = data.tags.get(RESULTS)
        return Record(
            id=info.run_id,
            name=info.run_name,
            experiment=self._experiments[info.experiment_id],
            status=info.status,
            started=datetime.fromtimestamp(info.start_time / 1000, UTC),
            seconds=ended if info.status != "RUNNING" else None,
            settings=dict(data.params),
            tags=tags,
            metrics=dict(data.metrics),
            results=results.split("\n") if results else [],
            parent=data.tags.get(PARENT),
        )


def _matching(records: Sequence[Record], name: str) -> list[Record]:
    """Those of that name, else those whose names begin so."""
    exact = [record for record in records if record.name == name]
    return exact or [record for record in records if record.name.startswith(name)]


def _all_pages(page: Any, limit: int | None = None) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        got = page(token)
        found += got
        token = got.token
        if not token or (limit is not None and len(found) >= limit):
            return found[:limit]
