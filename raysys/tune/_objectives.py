"""Metrics that a search optimizes, and the order and Pareto front of trials by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from raysys.errors import RaysysError

if TYPE_CHECKING:
    from raysys.tune._trial import Trial

Direction = Literal["maximize", "minimize"]


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point dominates, ascending.

    Larger is better in every coordinate. A point dominates another if it is at least as good in
    all coordinates and better in one; of equal points the first is on the front.
    """
    # A dominating point is larger in lexicographic order, so one pass meets it first.
    order = sorted(range(len(points)), key=lambda index: (tuple(points[index]), -index))
    front: list[int] = []
    for index in reversed(order):
        if not any(
            all(a >= b for a, b in zip(points[best], points[index], strict=True)) for best in front
        ):
            front.append(index)
    return sorted(front)


@dataclass(frozen=True)
class Objectives:
    """One or several metrics with their directions.

    Raises:
        RaysysError: No metric is named, or a direction is unknown.
    """

    directions: dict[str, Direction]

    def __post_init__(self) -> None:
        wrong = [way for way in self.directions.values() if way not in ("maximize", "minimize")]
        if wrong or not self.directions:
            raise RaysysError(
                f"directions {self.directions}: name each metric and give it 'maximize' or "
                "'minimize'"
            )

    @property
    def single(self) -> bool:
        """Whether there is one metric, so that trials have an order."""
        return len(self.directions) == 1

    @property
    def metric(self) -> str:
        """Name of the only metric."""
        (name,) = self.directions
        return name

    def scores(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """Values of the objectives' metrics, negated where minimized: larger is better."""
        return tuple(
            metrics[name] if direction == "maximize" else -metrics[name]
            for name, direction in self.directions.items()
        )

    def best_score(self, trial: Trial, until: int | None = None) -> float | None:
        """Best score of a trial's rounds, or of those up to one; None without rounds."""
        count = len(trial.rounds) if until is None else until - trial.start_round
        return max((self.scores(metrics)[0] for metrics in trial.rounds[:count]), default=None)

    def best_round(self, trial: Trial) -> int:
        """Number of the round that represents a trial: the best, or the last of several metrics."""
        if not self.single:
            return trial.last_round
        scores = [self.scores(metrics)[0] for metrics in trial.rounds]
        return trial.start_round + scores.index(max(scores)) + 1

    def metrics(self, trial: Trial) -> dict[str, float]:
        """All metrics of the round that represents a trial; empty without rounds."""
        return trial.rounds[self.best_round(trial) - trial.start_round - 1] if trial.rounds else {}

    def best_trial(self, trials: Sequence[Trial]) -> Trial | None:
        """The trial with the best score, the earliest of equals; None without rounds."""
        return next(iter(self.pareto_front(trials)), None)

    def pareto_front(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials that no other one dominates, by number; the earliest of equals."""
        scored = sorted((trial for trial in trials if trial.rounds), key=lambda t: t.number)
        front = pareto_front([self.scores(self.metrics(trial)) for trial in scored])
        return [scored[index] for index in front]
