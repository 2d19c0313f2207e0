"""Result of a throughput search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.console import html_table, text_table
from raysys.tracking import plots
from raysys.tune._search_result import format_value
from raysys.tune.throughput._trial import ThroughputTrial, throughput_front

if TYPE_CHECKING:
    from raysys.train import TrainSettings


@dataclass(frozen=True, repr=False)
class ThroughputResult:
    """Configurations of a training, measured, and the recommended one.

    Attributes:
        name: Name of the search.
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
