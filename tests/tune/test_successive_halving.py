"""Halving against its definition, on curves that are known."""

from collections import Counter

import numpy as np

from raysys.storage import Storage
from raysys.tune import Float, Goal
from raysys.tune._successive_halving import Halving
from tests.tune.local import open_ledger, run

GOAL = Goal({"y": "max"})


def test_a_trial_goes_on_exactly_if_it_is_in_the_better_half_of_those_before(
    storage: Storage,
) -> None:
    ledger = open_ledger(
        storage, {"x": Float(0, 1)}, searcher="random", trials=40, rounds=8, grace=1
    )
    trials = run(ledger, lambda settings, done: settings["x"] + done)
    assert Counter(trial.state for trial in trials).keys() == {"finished", "stopped"}
    for trial in trials:
        expected = 8
        for rung in (1, 2, 4):
            before = [
                other.settings["x"]
                for other in trials[: trial.number]
                if other.done >= rung
            ]  # fmt: skip
            if before and trial.settings["x"] < np.median(before):
                expected = rung
                break
        assert trial.done == expected


def test_rungs_start_at_the_grace_and_end_before_the_last_round() -> None:
    assert Halving(grace=2, rounds=9, reduction=2).rungs() == [2, 4, 8]
    assert Halving(grace=2, rounds=8, reduction=2).rungs() == [2, 4]
    assert Halving(grace=4, rounds=4, reduction=2).rungs() == []


def test_brackets_have_the_sizes_of_hyperband() -> None:
    # R = 27, eta = 3: 27, 12, 6 and 4 trials at 1, 3, 9 and 27 rounds (its table, page 9).
    halving = Halving(grace=1, rounds=27, reduction=3, brackets=True)
    sizes = Counter(halving.bracket(number) for number in range(49))
    assert sizes == {0: 27, 1: 12, 2: 6, 3: 4}
    assert [halving.rungs(bracket)[:1] for bracket in range(4)] == [[1], [3], [9], []]
    assert halving.bracket(49) == 0
