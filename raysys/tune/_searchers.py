"""Which settings are tried next: a function of the trials so far, the seed and the number."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raysys.errors import RaysysError
from raysys.tune import _population_based as _population
from raysys.tune._space import Space, enough, grid, sample, spread
from raysys.tune._successive_halving import Halving

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.tune._trial import Goal, Trial

Model = Literal["random", "tpe", "gp", "bohb"]
_ASHA_REDUCTION, _HYPERBAND_REDUCTION = 2, 3
_REPEATS = 5


@dataclass(frozen=True)
class Grid:
    """Each combination of the values of Choices and of so many of each range, in mixed order."""

    points: int = 3


@dataclass(frozen=True)
class Population:
    """Population-based training (Jaderberg et al., 2017).

    `size` members train side by side. After each `every` rounds a member of the worst quarter
    takes over the state and the settings of one of the best quarter, its settings changed a
    little; the others go on. Each such stretch is a trial of its own, which starts from its
    parent's saved state: the objective has to call `report.resume()` and to save.
    """

    size: int = 8
    every: int = 1


Searcher = Model | Grid | Population


@dataclass(frozen=True)
class Plan:
    """How a search proposes.

    Attributes:
        searcher: The kind.
        space: A domain for each setting.
        goal: By what trials are judged.
        rounds: Of a trial that is not stopped.
        grace: Rounds that every trial may run.
        defaults: Settings of the first trial.
        seed: Of all proposals.
    """

    searcher: Searcher
    space: Space
    goal: Goal
    rounds: int
    grace: int
    defaults: Mapping[str, Any]
    seed: int

    def __post_init__(self) -> None:
        orderly = isinstance(self.searcher, Population) or self.searcher == "bohb"
        if orderly and not self.goal.single:
            raise RaysysError(
                f"{self.searcher} compares trials by one measurement, and {self.goal.metrics} are "
                "several: search with 'tpe', 'gp', 'random' or Grid"
            )
        known = ("random", "tpe", "gp", "bohb")
        if not isinstance(self.searcher, Grid | Population) and self.searcher not in known:
            raise RaysysError(
                f"searcher={self.searcher!r} is none of {', '.join(known)}, Grid(...) and "
                "Population(...)"
            )

    @property
    def most(self) -> int | None:
        """How many trials there can be at all; None is no limit."""
        if isinstance(self.searcher, Grid):
            return sum(1 for _ in grid(self.space, self.searcher.points))
        if isinstance(self.searcher, Population):
            return self.searcher.size * -(-self.rounds // self.searcher.every)
        return None

    @property
    def halving(self) -> Halving | None:
        """How trials that fall behind are stopped; None: they are not."""
        if isinstance(self.searcher, Population) or not self.goal.single:
            return None
        if self.searcher == "bohb":
            return Halving(self.grace, self.rounds, _HYPERBAND_REDUCTION, brackets=True)
        return Halving(self.grace, self.rounds, _ASHA_REDUCTION)

    def last_round(self, trial: Trial) -> int:
        """After which round a trial has done its part."""
        if isinstance(self.searcher, Population):
            return min(trial.first + self.searcher.every, self.rounds)
        return self.rounds

    def propose(
        self, number: int, trials: Mapping[int, Trial], earlier: Sequence[Trial]
    ) -> _population.Start | None:
        """Settings of a trial, and whose state it starts from.

        The same trials give the same proposal, so a search that is taken up again goes on as it
        would have.

        Args:
            number: Of the trial, one more than the last one's.
            trials: Of this search, by number.
            earlier: Of earlier searches.

        Returns:
            None if that has to wait for trials that are running.
        """
        rng = np.random.default_rng([self.seed, number])
        if isinstance(self.searcher, Grid):
            order = np.random.default_rng(self.seed).permutation(self.most or 0)
            cells = grid(self.space, self.searcher.points)
            return _population.Start(next(itertools.islice(cells, int(order[number]), None)))
        if isinstance(self.searcher, Population):
            return _population.propose(
                number, self.searcher.size, trials, earlier, self.space, self.goal, self.defaults,
                rng,
            )  # fmt: skip
        if self.searcher == "random":
            found = sample(self.space, rng)
        elif len(trials) + len(earlier) < enough(self.space):
            found = spread(self.space, number, self.seed)  # too few for a model
        else:
            found = self._modelled(rng, [*earlier, *trials.values()])
        return _population.Start({**found, **self.defaults} if number == 0 else found)

    def _modelled(self, rng: np.random.Generator, known: list[Trial]) -> dict[str, Any]:
        """What a model of the known trials proposes; not what was tried, if it can be helped."""
        from raysys.tune import _samplers as _models

        tried = [trial.settings for trial in known]
        for _ in range(_REPEATS):
            seed = int(rng.integers(2**31))
            if self.searcher == "bohb":
                found = _models.bohb(self.space, self.goal, known, seed)
            else:
                kind: Literal["gp", "tpe"] = "gp" if self.searcher == "gp" else "tpe"
                found = _models.bayesian(kind, self.space, self.goal, known, seed)
            if found not in tried:
                return found
        others = [sample(self.space, rng) for _ in range(_REPEATS**2)]
        return next((other for other in others if other not in tried), found)
