"""A search's record in MLflow: one run, with a child for each trial."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from raysys import tracking
from raysys.tune._trial import CPU_SECONDS, SECONDS

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.storage import Storage
    from raysys.tune._objectives import Objectives
    from raysys.tune._trial import Trial

_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


class SearchTracker:
    """Records trials from a thread of its own, so that no trial waits for it."""

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
        tags = {"state": trial.state, "reason": trial.reason, "parent": trial.parent}
        child = tracking.open_run(
            self._folder,
            "search",
            f"trial {trial.number}",
            settings=trial.params,
            tags={name: value for name, value in tags.items() if value is not None},
        )
        for step, metrics in enumerate(trial.rounds, trial.start_round + 1):
            child.log(metrics, step)
        final = self._objectives.metrics(trial) if trial.rounds else {}
        names = (*self._objectives.directions, SECONDS, CPU_SECONDS)
        child.end(_STATUS[trial.state], {f"best {n}": final[n] for n in names if n in final})
