"""Result of a throughput search: the measured configurations of a training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from raysys.console import html_table, text_table
from raysys.tracking import plots
from raysys.tune._objectives import pareto_front
from raysys.tune._search_result import format_value

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


@dataclass(frozen=True, repr=False)
class ThroughputResult:
    """Configurations of a training, measured, and the recommended one.

    Attributes:
        trials: Measured configurations, the defaults first.
        best_trial: The recommended configuration; the defaults if none is better.
        reason: Explanation of the recommendation.
        metric: Name of the loss.
        loss_samples: Samples trained on for each loss.
        duration_s: Duration of the search in seconds.
        notes: Configurations left out, with the reasons.
    """

    name: str
    trials: list[ThroughputTrial]
    best_trial: ThroughputTrial
    reason: str
    metric: str
    loss_samples: int
    duration_s: float
    notes: list[str]

    @property
    def best_settings(self) -> TrainSettings:
        """Settings of the recommended configuration, for `train.fit`."""
        return self.best_trial.settings

    @property
    def defaults(self) -> ThroughputTrial:
        """The default settings, measured."""
        return self.trials[0]

    @property
    def speedup(self) -> float:
        """Samples per second of the recommended configuration over those of the defaults."""
        return (self.best_trial.samples_per_s or 0.0) / (self.defaults.samples_per_s or 1.0)

    @property
    def pareto_front(self) -> list[ThroughputTrial]:
        """Trials that no other one dominates in samples/s, cost and loss; fastest first."""
        return throughput_front(self.trials)

    def rows(self) -> list[dict[str, Any]]:
        """A flat row for each trial."""
        return [_row(trial) for trial in self.trials]

    def table(self) -> str:
        """The trials as text, fastest first: * on the Pareto front, > recommended."""
        return text_table(*self._cells())

    def plot(self, x: str = "samples_per_s", y: str = "loss") -> bytes:
        """The trials by two of their figures, with the Pareto front, as PNG."""
        front = [_row(trial) for trial in self.pareto_front]
        return plots.front(f"{self.name}: {y} against {x}", self.rows(), x, y, front)

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        front = {id(trial) for trial in self.pareto_front}
        rows = []
        for trial in sorted(self.trials, key=lambda t: -(t.samples_per_s or 0.0)):
            mark = (">" if trial is self.best_trial else "") + ("*" if id(trial) in front else "")
            if trial.error:
                rows.append([mark, *["-"] * 6, f"{trial.label}: {trial.error}"])
                continue
            mib = (trial.memory_bytes or 0) / 2**20
            rows.append([
                mark, f"{trial.samples_per_s:,.0f}", format_value(trial.cost),
                format_value(trial.cpu_s), format_value(trial.loss, 5), f"{mib:,.0f}",
                f"{trial.start_s:.1f}", trial.label,
            ])  # fmt: skip
        numbers = ("", "samples/s", "cost", "CPU-s", self.metric, "MiB", "start s")
        return [*(f">{heading}" for heading in numbers), "settings"], rows

    def __str__(self) -> str:
        return "\n".join([self.table(), *self.notes, self.reason])

    def __repr__(self) -> str:
        return f"<ThroughputResult {self._summary()}>"

    def _repr_html_(self) -> str:
        return html_table(*self._cells(), f"Throughput search {self._summary()}")

    def _summary(self) -> str:
        failed = sum(trial.error is not None for trial in self.trials)
        return (
            f"{self.name!r}: best {self.best_trial.label}, {self.speedup:.2f} times the defaults' "
            f"samples/s; {len(self.trials)} trials ({failed} failed)"
        )


def _row(trial: ThroughputTrial) -> dict[str, Any]:
    return {**trial.changed, **trial.figures, "error": trial.error}
