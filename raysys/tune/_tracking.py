"""Searches' records in MLflow: one run each, with a child for each trial."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from raysys import tracking
from raysys.storage import Storage
from raysys.tune._trial import CPU_SECONDS, SECONDS

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.train import TrainSettings
    from raysys.tune._objectives import Objectives
    from raysys.tune._trial import Trial
    from raysys.tune.throughput._result import ThroughputResult

_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


class SearchTracker:
    """Records the trials of a search from a thread of its own, so that no trial waits for it."""

    def __init__(
        self, storage: Storage, folder: Storage, name: str, objectives: Objectives,
        settings: Mapping[str, Any], tables: Mapping[str, Table],
    ) -> None:  # fmt: skip
        self._objectives, self._folder = objectives, folder
        self._run = tracking.open_run(storage, "search", name, settings=settings, tables=tables)
        self._run.nest(folder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search-tracking")

    def log_trial(self, trial: Trial) -> None:
        """Record a trial that has ended."""
        self._thread.submit(self._record, trial)

    def end(self, status: str, results: Mapping[str, float]) -> None:
        """Wait until all is written, and close the run."""
        self._thread.shutdown()
        self._run.end(status, results)

    def _record(self, trial: Trial) -> None:
        facts = {"state": trial.state, "reason": trial.reason, "parent": trial.parent}
        tags = {key: value for key, value in facts.items() if value is not None}
        name = f"trial {trial.number}"
        child = tracking.open_run(self._folder, "search", name, settings=trial.params, tags=tags)
        for step, metrics in enumerate(trial.rounds, trial.start_round + 1):
            child.log(metrics, step)
        final = self._objectives.metrics(trial)
        names = (*self._objectives.directions, SECONDS, CPU_SECONDS)
        child.end(_STATUS[trial.state], {f"best {n}": final[n] for n in names if n in final})


def log_throughput(
    result: ThroughputResult, storage: Storage, settings: TrainSettings, tables: Mapping[str, Table]
) -> None:
    """Record a throughput search."""
    run = tracking.open_run(
        storage, "throughput", result.name, settings=settings.model_dump(), tables=tables
    )
    folder = Storage(storage.uri(f"throughput/{result.name}"))
    run.nest(folder)
    front = result.pareto_front
    for number, trial in enumerate(result.trials):
        name, values = f"{result.name} {number}", trial.settings.model_dump()
        tags = {"changed": trial.label, "front": trial in front}
        tags |= {"failed": trial.error} if trial.error else {}
        child = tracking.open_run(
            folder, "throughput", name, settings=values, tags=tags, fresh=True
        )
        figures = {key: float(value) for key, value in trial.figures.items() if value is not None}
        child.end("FAILED" if trial.error else "FINISHED", figures)
    run.log_tags({"recommended": result.best_trial.label, "reason": result.reason})
    run.end("FINISHED", {"samples_per_s_ratio": result.speedup, "seconds": result.duration_s})
