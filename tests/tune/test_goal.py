import numpy as np

from raysys.tune import Goal, Trial

GOAL = Goal({"auc": "max", "cost": "min"})


def test_the_front_is_what_brute_force_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        # Few distinct values, so that there are ties.
        points = rng.integers(0, 6, size=(25, 2)).tolist()
        trials = [
            Trial(number, {}, "finished", rounds=[{"auc": auc, "cost": cost}])
            for number, (auc, cost) in enumerate(points)
        ]
        expected = []
        for number, (auc, cost) in enumerate(points):
            beaten = any(
                a >= auc and c <= cost and (a > auc or c < cost or other < number)
                for other, (a, c) in enumerate(points)
                if other != number
            )
            if not beaten:
                expected.append(number)
        assert [trial.number for trial in GOAL.front(trials)] == expected


def test_one_measurement_is_judged_by_its_best_round_several_by_the_last() -> None:
    rounds = [{"auc": 0.5, "cost": 1.0}, {"auc": 0.9, "cost": 2.0}, {"auc": 0.7, "cost": 3.0}]
    trial = Trial(0, {}, "finished", first=4, rounds=rounds)
    assert Goal({"auc": "max"}).best_round(trial) == 6
    assert Goal({"cost": "min"}).best_round(trial) == 5
    assert GOAL.measured(trial) == rounds[-1]


def test_trials_without_a_round_are_never_the_best() -> None:
    failed = Trial(0, {}, "failed", reason="broken")
    good = Trial(1, {}, "finished", rounds=[{"auc": 0.1, "cost": 1.0}])
    assert Goal({"auc": "max"}).best([failed, good]) is good
    assert GOAL.front([failed, good]) == [good]
    assert Goal({"auc": "max"}).best([failed]) is None
