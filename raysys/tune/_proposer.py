"""Proposals of a search: a function of the trials so far, the seed and the trial's number."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raysys.errors import RaysysError
from raysys.tune import _bayesian, _population_based
from raysys.tune._population_based import Proposal
from raysys.tune._search_settings import Grid, Population, Sampler
from raysys.tune._space import Space, grid, n_startup_trials, random_params, sobol_params
from raysys.tune._successive_halving import SuccessiveHalving, TrialScheduler

if TYPE_CHECKING:
    from raysys.tune._objectives import Objectives
    from raysys.tune._trial import Trial

_ASHA_REDUCTION, _HYPERBAND_REDUCTION = 2, 3
_REPEATS = 5


@dataclass(frozen=True)
class Proposer:
    """Proposals and lengths of a search's trials."""

    sampler: Sampler
    space: Space
    objectives: Objectives
    scheduler: TrialScheduler

    def __post_init__(self) -> None:
        method = self.sampler.method
        if (isinstance(method, Population) or method == "bohb") and not self.objectives.single:
            raise RaysysError(
                f"{method} compares trials by one metric, got {self.objectives.directions}: use "
                "'tpe', 'gp', 'random' or Grid"
            )

    @property
    def max_trials(self) -> int | None:
        """Number of trials after which the sampler ends; None without an end."""
        method = self.sampler.method
        if isinstance(method, Grid):
            return sum(1 for _ in grid(self.space, method.points))
        if isinstance(method, Population):
            return method.size * -(-self.scheduler.max_rounds // method.every)
        return None

    @property
    def halving(self) -> SuccessiveHalving | None:
        """Early stopping of the trials, if there is any."""
        if isinstance(self.sampler.method, Population) or not self.objectives.single:
            return None
        if self.sampler.method == "bohb":
            return SuccessiveHalving(self.scheduler, _HYPERBAND_REDUCTION, brackets=True)
        return SuccessiveHalving(self.scheduler, _ASHA_REDUCTION)

    def final_round(self, trial: Trial) -> int:
        """Round after which a trial is finished."""
        method, rounds = self.sampler.method, self.scheduler.max_rounds
        if isinstance(method, Population):
            return min(trial.start_round + method.every, rounds)
        return rounds

    def propose(
        self, number: int, trials: Mapping[int, Trial], earlier: Sequence[Trial]
    ) -> Proposal | None:
        """Parameters of the next trial, and the trial that it continues.

        The same trials, of this search by number and of earlier ones, give the same proposal, so
        that a resumed search continues as it would have uninterrupted. None if the proposal
        depends on trials that are running.
        """
        sampler, space = self.sampler, self.space
        rng = np.random.default_rng([sampler.seed, number])
        if isinstance(sampler.method, Grid):
            order = np.random.default_rng(sampler.seed).permutation(self.max_trials or 0)
            cells = grid(space, sampler.method.points)
            return Proposal(next(itertools.islice(cells, int(order[number]), None)))
        if isinstance(sampler.method, Population):
            size = sampler.method.size
            return _population_based.propose(self, size, number, trials, earlier, rng)
        if sampler.method == "random":
            params = random_params(space, rng)
        elif len(trials) + len(earlier) < n_startup_trials(space):
            params = sobol_params(space, number, sampler.seed)
        else:
            params = self._model_based(rng, [*earlier, *trials.values()])
        return Proposal({**params, **sampler.enqueue} if number == 0 else params)

    def _model_based(self, rng: np.random.Generator, trials: list[Trial]) -> dict[str, Any]:
        """Proposal of a model of the trials, new unless the space is nearly exhausted."""
        tried = [trial.params for trial in trials]
        for _ in range(_REPEATS):
            seed = int(rng.integers(2**31))
            if self.sampler.method == "bohb":
                params = _bayesian.bohb(self.space, self.objectives, trials, seed)
            else:
                kind: Literal["gp", "tpe"] = "gp" if self.sampler.method == "gp" else "tpe"
                params = _bayesian.bayesian(kind, self.space, self.objectives, trials, seed)
            if params not in tried:
                return params
        random = (random_params(self.space, rng) for _ in range(_REPEATS**2))
        return next((candidate for candidate in random if candidate not in tried), params)
