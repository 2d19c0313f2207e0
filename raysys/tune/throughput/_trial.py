"""A measured configuration of a training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from raysys.tune._objectives import pareto_front

if TYPE_CHECKING:
    from raysys.train import TrainSettings


@dataclass(frozen=True)
class ThroughputTrial:
    """A configuration that was measured.

    Attributes:
        settings: All settings of the configuration.
        changed: Settings that differ from the defaults.
        samples_per_s: Throughput of all workers; None if it failed.
        cost: CPU-seconds (GPU-seconds on GPUs) reserved for a million samples, or their price.
        cpu_s: CPU-seconds consumed by a million samples.
        losses: Losses after the fixed number of samples, one for each seed; lower is better (a
            maximized metric is negated).
        loss: Their comparable mean: the defaults' mean plus the mean difference over the common
            seeds; None if it was not measured.
        memory_bytes: Peak memory of a worker.
        start_s: Seconds to the first step.
        error: Reason why it does not work.
    """

    settings: TrainSettings
    changed: dict[str, Any] = field(default_factory=dict)
    samples_per_s: float | None = None
    cost: float | None = None
    cpu_s: float | None = None
    losses: tuple[float, ...] = ()
    loss: float | None = None
    memory_bytes: int | None = None
    start_s: float = 0.0
    error: str | None = None

    @property
    def label(self) -> str:
        """Settings that differ from the defaults, as text."""
        return ", ".join(f"{name}={value}" for name, value in self.changed.items()) or "defaults"

    @property
    def figures(self) -> dict[str, float | None]:
        """Measurements by name."""
        return {name: getattr(self, name) for name in _FIGURES}

    def run_s(self, n_samples: float) -> float:
        """Duration of a run in seconds, its start included."""
        return self.start_s + n_samples / self.samples_per_s if self.samples_per_s else math.inf


_FIGURES = ("samples_per_s", "cost", "cpu_s", "loss", "memory_bytes", "start_s")


def with_losses(
    trial: ThroughputTrial, losses: Sequence[float], defaults: Sequence[float]
) -> ThroughputTrial:
    """The trial with its losses, which share their seeds with the first of the defaults'."""
    differences = [own - base for own, base in zip(losses, defaults, strict=False)]
    loss = statistics.fmean(defaults) + statistics.fmean(differences)
    return replace(trial, losses=tuple(losses), loss=loss)


def throughput_front(trials: Sequence[ThroughputTrial]) -> list[ThroughputTrial]:
    """The Pareto front of samples per second, cost and loss, fastest first."""
    measured = [
        (trial, (trial.samples_per_s, -trial.cost, -trial.loss))
        for trial in trials
        if trial.samples_per_s is not None and trial.cost is not None and trial.loss is not None
    ]
    front = [measured[index] for index in pareto_front([figures for _, figures in measured])]
    return [trial for trial, figures in sorted(front, key=lambda pair: -pair[1][0])]
