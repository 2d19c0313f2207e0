"""Result of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.console import html_table, text_table
from raysys.errors import RaysysError
from raysys.imports import lazy_import
from raysys.tracking import plots
from raysys.tune._trial import CPU_SECONDS, SECONDS
from raysys.tune._trial_process import checkpoint_path, saved_rounds

if TYPE_CHECKING:
    from ray.train import Checkpoint

    from raysys.storage import Storage
    from raysys.tune._objectives import Objectives
    from raysys.tune._trial import Trial

ray_train = lazy_import("ray.train")


@dataclass(frozen=True, repr=False)
class SearchResult:
    """Trials of a search, and the best of them.

    Attributes:
        objectives: Metrics that it optimized.
        trials: All trials, by number.
        folder: Storage of the trials and their checkpoints.
    """

    name: str
    objectives: Objectives
    trials: list[Trial]
    folder: Storage

    @property
    def best_trial(self) -> Trial:
        """The trial with the best value in any of its rounds.

        Raises:
            RaysysError: The search has several metrics, and a Pareto front instead.
        """
        if not self.objectives.single:
            raise RaysysError(
                f"search {self.name!r} has no single best trial, it optimizes "
                f"{', '.join(self.objectives.directions)}: choose one of result.pareto_front"
            )
        best = self.objectives.best_trial(self.trials)
        assert best is not None  # search() returns no result without a value
        return best

    @property
    def best_params(self) -> dict[str, Any]:
        """Parameters of the best trial."""
        return self.best_trial.params

    @property
    def best_value(self) -> float:
        """The metric's value in the best round of the best trial."""
        return self.objectives.metrics(self.best_trial)[self.objectives.metric]

    @property
    def best_round(self) -> int:
        """Number of the best round of the best trial, from 1."""
        return self.objectives.best_round(self.best_trial)

    @property
    def pareto_front(self) -> list[Trial]:
        """The trials that no other one dominates; of a single metric, the best trial."""
        return self.objectives.pareto_front(self.trials)

    def checkpoint(self, trial: Trial | None = None) -> Checkpoint | None:
        """Checkpoint of the best round of a trial on the Pareto front, if it saved one.

        Args:
            trial: The best trial by default.
        """
        trial = trial or self.best_trial
        round_ = self.objectives.best_round(trial)
        if round_ not in saved_rounds(self.folder, trial.number):
            return None
        return ray_train.Checkpoint(self.folder.uri(checkpoint_path(trial.number, round_)))

    def rows(self) -> list[dict[str, Any]]:
        """A flat row a trial: parameters, metrics of its best round, rounds, state."""
        rows = []
        for trial in self.trials:
            row = {"trial": trial.number, **trial.params, **self.objectives.metrics(trial)}
            row |= {"round": trial.last_round, "state": trial.state}
            rows.append(row | ({"reason": trial.reason} if trial.reason else {}))
        return rows

    def table(self) -> str:
        """The trials as text, those on the Pareto front first and marked by a star."""
        return text_table(*self._cells())

    def plot(self, x: str, y: str) -> bytes:
        """The trials by two metrics, with the Pareto front, as PNG."""
        points, front = (
            [self.objectives.metrics(trial) for trial in trials]
            for trials in (self.trials, self.pareto_front)
        )
        return plots.front(f"{self.name}: {y} against {x}", points, x, y, front)

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        front = {trial.number for trial in self.pareto_front}
        metrics = list(dict.fromkeys([*self.objectives.directions, SECONDS, CPU_SECONDS]))
        params = list(dict.fromkeys(key for trial in self.trials for key in trial.params))
        rows = []
        for trial in sorted(self.trials, key=lambda t: (t.number not in front, t.number)):
            values = self.objectives.metrics(trial)
            star = "*" if trial.number in front else ""
            cells = [f"{trial.number}{star}", trial.state, str(trial.last_round)]
            cells += [format_value(values.get(metric), 5) for metric in metrics]
            rows.append(cells + [format_value(trial.params.get(name), 5) for name in params])
        return [f">{name}" for name in ("trial", "state", "rounds", *metrics, *params)], rows

    def _summary(self) -> str:
        states = [trial.state for trial in self.trials]
        counts = ", ".join(f"{states.count(state)} {state}" for state in sorted({*states}))
        if self.objectives.single and any(trial.rounds for trial in self.trials):
            best = f"best {self.objectives.metric}={self.best_value:.5g} with {self.best_params}"
        else:
            best = f"{len(self.pareto_front)} on the Pareto front of "
            best += ", ".join(self.objectives.directions)
        return f"{self.name!r}: {best}; {len(self.trials)} trials ({counts})"

    def __repr__(self) -> str:
        return f"<SearchResult {self._summary()}>"

    def _repr_html_(self) -> str:
        return html_table(*self._cells(), f"Search {self._summary()}")


def format_value(value: Any, digits: int = 4) -> str:
    """A cell's text: floats in significant digits, a dash for None."""
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
