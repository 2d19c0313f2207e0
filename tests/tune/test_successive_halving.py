"""Successive halving against its definition, on known curves."""

from collections import Counter

import numpy as np

from raysys.storage import Storage
from raysys.tune import Float, TrialScheduler
from raysys.tune._successive_halving import SuccessiveHalving
from tests.tune.local_ledger import open_ledger, run


def test_a_trial_continues_exactly_if_it_is_in_the_better_half_of_its_predecessors(
    storage: Storage,
) -> None:
    ledger = open_ledger(storage, {"x": Float(0, 1)}, method="random", n_trials=40, max_rounds=8)
    trials = run(ledger, lambda params, round_: params["x"] + round_)
    assert Counter(trial.state for trial in trials).keys() == {"finished", "stopped"}
    for trial in trials:
        expected = 8
        for rung in (1, 2, 4):
            before = [
                peer.params["x"]
                for peer in trials[: trial.number]
                if peer.last_round >= rung
            ]  # fmt: skip
            if before and trial.params["x"] < np.median(before):
                expected = rung
                break
        assert trial.last_round == expected


def test_rungs_start_at_the_grace_and_end_before_the_last_round() -> None:
    for grace, rounds, rungs in ((2, 9, [2, 4, 8]), (2, 8, [2, 4]), (4, 4, [])):
        assert SuccessiveHalving(TrialScheduler(rounds, grace), 2).rungs() == rungs


def test_brackets_have_the_sizes_of_hyperband() -> None:
    # R = 27, eta = 3: 27, 12, 6 and 4 trials at 1, 3, 9 and 27 rounds (its table, page 9).
    halving = SuccessiveHalving(TrialScheduler(27), reduction_factor=3, brackets=True)
    sizes = Counter(halving.bracket(number) for number in range(49))
    assert sizes == {0: 27, 1: 12, 2: 6, 3: 4}
    assert [halving.rungs(bracket)[:1] for bracket in range(4)] == [[1], [3], [9], []]
    assert halving.bracket(49) == 0
