"""The record of a tuned training: one run, with a child for each configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysys import tracking
from raysys.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raysys.data import Table
    from raysys.train import TrainSettings
    from raysys.tune.throughput._result import Throughput

_FIGURES = ("samples_per_s", "cost", "cpu_s", "loss", "memory_bytes", "start_s")


def record(
    found: Throughput, storage: Storage, settings: TrainSettings, tables: Mapping[str, Table]
) -> None:
    """Write down what came out."""
    run = tracking.open_run(
        storage, "throughput", found.name, settings=settings.model_dump(), tables=tables
    )
    folder = Storage(storage.uri(f"throughput/{found.name}"))
    run.nest(folder)
    front = found.front
    for number, one in enumerate(found.tried):
        tags: dict[str, object] = {"changed": one.label, "front": one in front}
        if one.failed:
            tags["failed"] = one.failed
        child = tracking.open_run(
            folder,
            "throughput",
            f"{found.name} {number}",
            settings=one.settings.model_dump(),
            tags=tags,
            fresh=True,
        )
        known = {name: getattr(one, name) for name in _FIGURES}
        child.end(
            "FAILED" if one.failed else "FINISHED",
            {name: float(value) for name, value in known.items() if value is not None},
        )
    run.log_tags({"recommended": found.best.label, "reason": found.reason})
    ratio = (found.best.samples_per_s or 0.0) / (found.defaults.samples_per_s or 1.0)
    run.end("FINISHED", {"samples_per_s_ratio": ratio, "seconds": found.seconds})
