"""The record of a search: what is done once stays done, budgets end it, failures are bounded."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from raysys.errors import RaysysError
from raysys.storage import Storage
from raysys.tune import Choice, Float, Population, Searcher, Space, Trial
from raysys.tune._trial_ledger import BUDGET_SPENT, begin
from tests.tune.local import open_ledger, run, steps

SPACE: Space = {"x": Float(-5, 5), "shape": Choice(((1, 2), (3,)))}


def curve(settings: dict[str, Any], done: int) -> float:
    return -((settings["x"] - 1) ** 2) - len(settings["shape"]) - 1 / done


def told(trials: list[Trial]) -> list[tuple[object, ...]]:
    """What has to be equal, times aside."""
    return [
        (t.number, t.settings, t.state, t.parent, t.first, [one["y"] for one in t.rounds])
        for t in trials
    ]


@pytest.mark.parametrize("searcher", ["tpe", "bohb", Population(size=3, every=2)])
def test_a_search_cut_off_at_any_moment_ends_like_an_undisturbed_one(
    tmp_path: Path, searcher: Searcher
) -> None:
    asked: dict[str, Any] = {"searcher": searcher, "trials": 12, "rounds": 8}
    whole = open_ledger(Storage(tmp_path / "whole"), SPACE, **asked)
    copies = []
    for moment, _ in enumerate(steps(whole, curve)):
        shutil.copytree(tmp_path / "whole", copy := tmp_path / str(moment))
        copies.append(copy)
    expected = told([whole.trials[number] for number in sorted(whole.trials)])
    assert len(copies) == 2 * len(expected)
    for copy in copies[:: 1 if isinstance(searcher, Population) else 5]:
        again = open_ledger(Storage(copy), SPACE, **asked)
        assert told(run(again, curve)) == expected
    finished = open_ledger(Storage(tmp_path / "whole"), SPACE, **asked)
    assert finished.complete


def test_what_ended_is_not_repeated(storage: Storage) -> None:
    first = run(open_ledger(storage, SPACE, trials=4), curve)
    more = open_ledger(storage, SPACE, trials=6)
    proposed = [trial.number for trial in steps(more, curve)]
    assert proposed == [4, 4, 5, 5]
    assert told([more.trials[number] for number in range(4)]) == told(first)


def test_a_report_that_comes_twice_counts_once(storage: Storage) -> None:
    ledger = open_ledger(storage, SPACE, trials=1, rounds=3)
    ledger.next()
    measured = {"y": 1.0, "seconds": 1.0, "cpu_seconds": 1.0}
    for _ in range(2):
        assert not ledger.take(0, {"rounds": [measured], "done_rounds": 1})
    assert len(ledger.trials[0].rounds) == 1


@pytest.mark.parametrize("budget", [{"seconds": 1e-9}, {"cpu_hours": 1e-12}])
def test_a_spent_budget_stops_the_trial_at_its_next_round_and_starts_no_other(
    storage: Storage, budget: dict[str, float]
) -> None:
    ledger = open_ledger(storage, SPACE, trials=5, rounds=9, cpus=4.0)
    assert isinstance(ledger.next(), Trial)
    again = open_ledger(storage, SPACE, trials=5, rounds=9, cpus=4.0, **budget)
    (trial,) = run(again, curve)
    assert (trial.state, trial.reason, trial.done) == ("stopped", BUDGET_SPENT, 1)
    assert again.complete


def test_cpu_hours_are_what_trials_hold_not_what_the_wall_clock_says(storage: Storage) -> None:
    ledger = open_ledger(
        storage, SPACE, searcher="random", trials=9, concurrency=4, cpu_hours=1.0, cpus=2.0
    )
    assert not ledger.budget.spent(seconds=1e9, trial_seconds=1799.0)
    assert ledger.budget.spent(seconds=0.0, trial_seconds=1800.0)


def test_no_more_trials_run_at_a_time_than_asked(storage: Storage) -> None:
    ledger = open_ledger(storage, SPACE, trials=9, concurrency=2)
    assert [isinstance(ledger.next(), Trial) for _ in range(3)] == [True, True, False]
    ledger.take(0, {"failed": "no"})
    assert isinstance(ledger.next(), Trial)


def test_too_many_failures_end_a_search_and_the_next_call_tries_them_again(
    storage: Storage,
) -> None:
    ledger = open_ledger(storage, SPACE, trials=9, failed=1)
    for number in range(2):
        assert isinstance(ledger.next(), Trial)
        assert not ledger.broken
        ledger.take(number, {"failed": "no memory"})
    assert ledger.broken
    assert ledger.next() == "end"
    settings = [ledger.trials[number].settings for number in range(2)]
    again = run(open_ledger(storage, SPACE, trials=9, failed=1), curve)
    assert {trial.state for trial in again} == {"finished"}
    assert [trial.settings for trial in again[:2]] == settings


def test_one_failure_is_told_and_left(storage: Storage) -> None:
    ledger = open_ledger(storage, SPACE, trials=3, failed=1)
    assert isinstance(ledger.next(), Trial)
    ledger.end(0, "its process died")
    assert [trial.state for trial in run(ledger, curve)] == ["failed", "finished", "finished"]
    (failed,) = open_ledger(storage, SPACE, trials=3, failed=1).failed
    assert failed.reason == "its process died"


def test_a_name_with_other_facts_is_refused_and_says_which(storage: Storage) -> None:
    begin("first", open_ledger(storage, SPACE, trials=1), {"seed": 0, "rounds": 3}, [])
    begin("first", open_ledger(storage, SPACE, trials=2), {"seed": 0, "rounds": 3}, [])
    with pytest.raises(RaysysError, match="seed = 0, and now it is 1"):
        begin("first", open_ledger(storage, SPACE, trials=1), {"seed": 1, "rounds": 3}, [])


def test_only_the_best_trials_files_stay(storage: Storage) -> None:
    ledger = open_ledger(storage, SPACE, trials=6)
    for trial in steps(ledger, curve):
        with storage.new_dir(f"trials/{trial.number:05d}/round-00001") as folder:
            (folder / "rounds.json").write_text("[]")
    best = max(ledger.trials.values(), key=lambda trial: trial.rounds[0]["y"])
    ledger._remove_old()
    kept = [name for name in storage.names("trials") if not name.endswith(".json")]
    assert kept == [f"{best.number:05d}"]
