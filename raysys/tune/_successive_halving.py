"""Early stopping by asynchronous successive halving."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysys.arguments import checked

if TYPE_CHECKING:
    from raysys.tune._objectives import Objectives
    from raysys.tune._trial import Trial


@checked
@dataclass(frozen=True)
class TrialScheduler:
    """Length of trials.

    Attributes:
        max_rounds: Reports of a trial that is not stopped.
        grace_rounds: Rounds that every trial may run; as many as `max_rounds` stop none early.
    """

    max_rounds: int = 1
    grace_rounds: int = 1


@dataclass(frozen=True)
class SuccessiveHalving:
    """Asynchronous successive halving, optionally in Hyperband's brackets.

    A trial that reaches a rung continues if its best score until then is in the upper
    1/`reduction_factor` of those that reached the rung before (Li et al., "A System for Massively
    Parallel Hyperparameter Tuning", 2020, in the variant that stops instead of pausing). With
    brackets, trials are dealt out as Hyperband does (Li et al., 2018, algorithm 1): one bracket
    stops early and gets most trials, the last stops none.
    """

    scheduler: TrialScheduler
    reduction_factor: int
    brackets: bool = False

    def should_stop(self, trial: Trial, trials: Iterable[Trial], objectives: Objectives) -> bool:
        """Whether a trial that has just ended a round is to be stopped."""
        bracket = self.bracket(trial.number)
        if trial.last_round not in self.rungs(bracket):
            return False
        peers = [
            score
            for peer in trials
            if peer.number != trial.number
            and peer.last_round >= trial.last_round
            and self.bracket(peer.number) == bracket
            and (score := objectives.best_score(peer, trial.last_round)) is not None
        ]
        own = objectives.best_score(trial, trial.last_round)
        if not peers or own is None:
            return False
        return own < float(np.quantile(peers, 1 - 1 / self.reduction_factor))

    def rungs(self, bracket: int = 0) -> list[int]:
        """Rounds at which the trials of a bracket are compared."""
        rungs, rung = [], self.scheduler.grace_rounds * self.reduction_factor**bracket
        while rung < self.scheduler.max_rounds:
            rungs.append(rung)
            rung *= self.reduction_factor
        return rungs

    def bracket(self, number: int) -> int:
        """Bracket of a trial."""
        if not self.brackets:
            return 0
        last = len(self.rungs())
        sizes = [
            -(-(last + 1) * self.reduction_factor ** (last - bracket) // (last - bracket + 1))
            for bracket in range(last + 1)
        ]
        ends = np.cumsum(sizes)
        return int(np.searchsorted(ends, number % ends[-1], side="right"))
