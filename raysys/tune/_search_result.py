"""What a search found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.errors import RaysysError
from raysys.tune._trial_process import saved_files, saved_rounds

if TYPE_CHECKING:
    from ray.train import Checkpoint

    from raysys.storage import Storage
    from raysys.tune._trial import Goal, Trial


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        name: Of the search.
        goal: By what it judged.
        trials: All of them, by number.
        folder: Where they are kept.
    """

    name: str
    goal: Goal
    trials: list[Trial]
    folder: Storage

    @property
    def best(self) -> Trial:
        """The trial with the best score in any of its rounds.

        Raises:
            RaysysError: There are several measurements, and so a front instead.
        """
        if not self.goal.single:
            raise RaysysError(
                f"search {self.name!r} has no single best trial, it judges by "
                f"{', '.join(self.goal.metrics)}: choose one of found.front"
            )
        best = self.goal.best(self.trials)
        assert best is not None  # search() gives nothing back without a score
        return best

    @property
    def settings(self) -> dict[str, Any]:
        """The best trial's."""
        return self.best.settings

    @property
    def score(self) -> float:
        """The best trial's, in its best round."""
        return self.goal.measured(self.best)[self.goal.name]

    @property
    def rounds(self) -> int:
        """How many rounds the best trial took to its score."""
        return self.goal.best_round(self.best)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What the best trial saved then, if it saves."""
        return self.saved(self.best)

    @property
    def front(self) -> list[Trial]:
        """The trials that no other one beats: the Pareto front, or the best trial."""
        return self.goal.front(self.trials)

    def saved(self, trial: Trial) -> Checkpoint | None:
        """What a trial saved in the round that stands for it; kept of the front's trials."""
        from ray.train import Checkpoint

        round_ = self.goal.best_round(trial)
        if round_ not in saved_rounds(self.folder, trial.number):
            return None
        return Checkpoint(self.folder.uri(saved_files(trial.number, round_)))

    def rows(self) -> list[dict[str, Any]]:
        """A flat row a trial: settings, measurements of its round, rounds, state."""
        rows = []
        for trial in self.trials:
            measured = self.goal.measured(trial) if trial.rounds else {}
            row = {"trial": trial.number, **trial.settings, **measured}
            row |= {"round": trial.done, "state": trial.state}
            rows.append(row | ({"reason": trial.reason} if trial.reason else {}))
        return rows

    def table(self) -> str:
        """The trials as text, those of the front marked by a star and first."""
        front = {trial.number for trial in self.front}
        names = [*self.goal.metrics, "seconds", "cpu_seconds"]
        settings = list(dict.fromkeys(key for trial in self.trials for key in trial.settings))
        heads = ["trial", "state", "rounds", *dict.fromkeys(names), *settings]
        lines = [heads]
        for trial in sorted(self.trials, key=lambda one: (one.number not in front, one.number)):
            measured = self.goal.measured(trial) if trial.rounds else {}
            row = [f"{trial.number}{'*' if trial.number in front else ''}", trial.state]
            row += [str(trial.done)]
            row += [_said(measured.get(name)) for name in heads[3 : len(heads) - len(settings)]]
            lines.append(row + [_said(trial.settings.get(name)) for name in settings])
        widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )

    def plot(self, x: str, y: str) -> bytes:
        """All trials by two of the measurements, with the front, as a PNG."""
        from raysys.tracking import plots

        points, front = (
            [self.goal.measured(trial) for trial in trials if trial.rounds]
            for trials in (self.trials, self.front)
        )
        return plots.front(f"{self.name}: {y} against {x}", points, x, y, front)


def _said(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
