"""Early stopping: who falls behind is stopped, at rounds that are a power apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from raysys.tune._trial import Goal, Trial


@dataclass(frozen=True)
class Halving:
    """Asynchronous successive halving, in several brackets if wanted.

    A trial that reaches a rung goes on if its best score until there is in the upper
    1/`reduction` of those that reached it before (Li et al., "A System for Massively Parallel
    Hyperparameter Tuning", 2020, in the form that stops instead of pausing). With brackets, trials
    are dealt out as Hyperband does (Li et al., 2018, algorithm 1): one bracket stops early and
    gets most trials, the last stops none.

    Attributes:
        grace: Rounds that every trial may run; the first rung.
        rounds: Rounds of a trial that is not stopped.
        reduction: Between the rungs.
        brackets: Deal trials out to Hyperband's brackets.
    """

    grace: int
    rounds: int
    reduction: int
    brackets: bool = False

    def behind(self, trial: Trial, others: Iterable[Trial], goal: Goal) -> bool:
        """Whether a trial that has just ended a round is to be stopped."""
        bracket = self.bracket(trial.number)
        if trial.done not in self.rungs(bracket):
            return False
        peers = [
            merit
            for other in others
            if other.number != trial.number
            and other.done >= trial.done
            and self.bracket(other.number) == bracket
            and (merit := goal.merit(other, trial.done)) is not None
        ]
        mine = goal.merit(trial, trial.done)
        if not peers or mine is None:
            return False
        return mine < float(np.quantile(peers, 1 - 1 / self.reduction))

    def rungs(self, bracket: int = 0) -> list[int]:
        """At which rounds a bracket's trials are compared."""
        rungs, rung = [], self.grace * self.reduction**bracket
        while rung < self.rounds:
            rungs.append(rung)
            rung *= self.reduction
        return rungs

    def bracket(self, number: int) -> int:
        """Which bracket a trial belongs to."""
        if not self.brackets:
            return 0
        last = len(self.rungs())
        sizes = [
            -(-(last + 1) * self.reduction ** (last - bracket) // (last - bracket + 1))
            for bracket in range(last + 1)
        ]
        place = number % sum(sizes)
        for bracket, size in enumerate(sizes):
            if place < size:
                return bracket
            place -= size
        raise AssertionError("unreachable: places are less than the sum of the sizes")
