"""A trial's record, and by what it is judged."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from raysys.errors import RaysysError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Direction = Literal["max", "min"]
State = Literal["running", "finished", "stopped", "failed"]
# Measured for every trial; an objective of the search may be one of them.
SECONDS, CPU_SECONDS = "seconds", "cpu_seconds"


@dataclass
class Trial:
    """One trial.

    Attributes:
        number: From 0, in the order of proposal.
        settings: What it tried.
        state: `finished` ran to its end, `stopped` was ended early, `failed` has a reason.
        reason: Why it failed.
        parent: Number of the trial whose saved state it went on from.
        first: Rounds that its parents had run.
        rounds: What it reported in each of its own, with `seconds` (wall clock) and
            `cpu_seconds` (of its process, all threads) since its start.
        started: When, in seconds of the search.
        ended: When it ended.
    """

    number: int
    settings: dict[str, Any]
    state: State = "running"
    reason: str | None = None
    parent: int | None = None
    first: int = 0
    rounds: list[dict[str, float]] = field(default_factory=list)
    started: float = 0.0
    ended: float | None = None

    @property
    def done(self) -> int:
        """Rounds until now, its parents' among them."""
        return self.first + len(self.rounds)

    @property
    def seconds(self) -> float:
        """Wall clock of its rounds."""
        return self.rounds[-1][SECONDS] if self.rounds else 0.0

    @property
    def cpu_seconds(self) -> float:
        """CPU time of its process in its rounds; workers that it started are not counted."""
        return self.rounds[-1][CPU_SECONDS] if self.rounds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Goal:
    """What a search judges by: one or several measurements, each to be made large or small."""

    metrics: dict[str, Direction]

    @classmethod
    def of(cls, metric: str | Mapping[str, Direction], mode: Direction) -> Goal:
        """Read what was given to `search`.

        Raises:
            RaysysError: There is no measurement, or a direction is neither max nor min.
        """
        metrics: dict[str, Direction]
        metrics = {metric: mode} if isinstance(metric, str) else dict(metric)
        if not metrics or any(way not in ("max", "min") for way in metrics.values()):
            raise RaysysError(
                f"metric={metric!r}, mode={mode!r}: name each measurement and say 'max' or 'min'"
            )
        return cls(metrics)

    @property
    def single(self) -> bool:
        """Whether there is one measurement, so that trials have an order."""
        return len(self.metrics) == 1

    @property
    def name(self) -> str:
        """The only measurement's name."""
        (name,) = self.metrics
        return name

    def merits(self, measured: Mapping[str, float]) -> tuple[float, ...]:
        """The measurements with more being better in each."""
        return tuple(
            measured[name] if way == "max" else -measured[name]
            for name, way in self.metrics.items()
        )

    def merit(self, trial: Trial, until: int | None = None) -> float | None:
        """The best of any round, or of those up to one; more is better, None is no round."""
        upto = len(trial.rounds) if until is None else until - trial.first
        return max((self.merits(one)[0] for one in trial.rounds[:upto]), default=None)

    def best_round(self, trial: Trial) -> int:
        """Which round (from 1, parents' counted) stands for a trial: the best, or the last."""
        if not self.single:
            return trial.done
        merits = [self.merits(measured)[0] for measured in trial.rounds]
        return trial.first + merits.index(max(merits)) + 1

    def measured(self, trial: Trial) -> dict[str, float]:
        """All measurements of the round that stands for a trial."""
        return trial.rounds[self.best_round(trial) - trial.first - 1]

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The trial with the best score, the earliest of equals."""
        judged = [(merit, trial) for trial in trials if (merit := self.merit(trial)) is not None]
        return max(judged, key=lambda pair: (pair[0], -pair[1].number))[1] if judged else None

    def front(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials that no other one equals or beats in every measurement and beats in one.

        Of trials with equal measurements the earliest stands for all.
        """
        judged = [(self.merits(self.measured(trial)), trial) for trial in trials if trial.rounds]
        # Whoever dominates a trial is larger in this order, so one pass sees it first.
        judged.sort(key=lambda pair: (pair[0], -pair[1].number), reverse=True)
        front: list[tuple[tuple[float, ...], Trial]] = []
        for merits, trial in judged:
            if not any(
                all(a >= b for a, b in zip(other, merits, strict=True)) for other, _ in front
            ):
                front.append((merits, trial))
        return sorted((trial for _, trial in front), key=lambda trial: trial.number)
