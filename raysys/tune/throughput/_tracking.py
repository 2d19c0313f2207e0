"""A throughput search's record in MLflow: one run, with a child for each trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from raysys import tracking
from raysys.storage import Storage

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.train import TrainSettings
    from raysys.tune.throughput._result import ThroughputResult


def log_result(
    result: ThroughputResult,
    storage: Storage,
    settings: TrainSettings,
    tables: Mapping[str, Table],
) -> None:
    """Record the result of a search."""
    run = tracking.open_run(
        storage, "throughput", result.name, settings=settings.model_dump(), tables=tables
    )
    folder = Storage(storage.uri(f"throughput/{result.name}"))
    run.nest(folder)
    front = result.pareto_front
    for number, trial in enumerate(result.trials):
        tags: dict[str, object] = {"changed": trial.label, "front": trial in front}
        if trial.error:
            tags["failed"] = trial.error
        child = tracking.open_run(
            folder,
            "throughput",
            f"{result.name} {number}",
            settings=trial.settings.model_dump(),
            tags=tags,
            fresh=True,
        )
        child.end(
            "FAILED" if trial.error else "FINISHED",
            {name: float(value) for name, value in trial.figures.items() if value is not None},
        )
    run.log_tags({"recommended": result.best_trial.label, "reason": result.reason})
    run.end("FINISHED", {"samples_per_s_ratio": result.speedup, "seconds": result.duration_s})
