import pytest

from raysys.errors import RaysysError
from raysys.tune import Objectives, Trial

SEVERAL = Objectives({"auc": "maximize", "cost": "minimize"})


def test_one_metric_counts_by_its_best_round_several_by_the_last() -> None:
    rounds = [{"auc": 0.5, "cost": 1.0}, {"auc": 0.9, "cost": 2.0}, {"auc": 0.7, "cost": 3.0}]
    trial = Trial(0, {}, "finished", start_round=4, rounds=rounds)
    assert Objectives({"auc": "maximize"}).best_round(trial) == 6
    assert Objectives({"cost": "minimize"}).best_round(trial) == 5
    assert SEVERAL.metrics(trial) == rounds[-1]


def test_the_front_follows_the_directions_and_skips_trials_without_rounds() -> None:
    values = [(0.1, 1.0), (0.1, 1.0), (0.2, 1.0), (0.3, 2.0), (0.2, 3.0)]
    trials = [
        Trial(number, {}, "finished", rounds=[{"auc": auc, "cost": cost}])
        for number, (auc, cost) in enumerate(values)
    ]
    trials.append(Trial(5, {}, "failed", reason="broken"))
    assert [trial.number for trial in SEVERAL.pareto_front(trials[::-1])] == [2, 3]
    assert Objectives({"auc": "maximize"}).best_trial(trials) is trials[3]
    best = Objectives({"cost": "minimize"}).best_trial(trials)
    assert best is trials[0]  # the earliest of equals
    assert SEVERAL.best_trial(trials[5:]) is None


@pytest.mark.parametrize("directions", [{}, {"auc": "max"}])
def test_unknown_directions_are_refused(directions: dict[str, object]) -> None:
    with pytest.raises(RaysysError, match="'maximize' or 'minimize'"):
        Objectives(directions)  # type: ignore[arg-type]
