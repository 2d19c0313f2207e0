"""The ledger of a search: ended trials stay, limits end it, failures are bounded."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from raysys.cluster import Resources
from raysys.errors import RaysysError, StorageError
from raysys.storage import Storage
from raysys.tune import Choice, Float, Population, SearchLimits, Space, Trial
from raysys.tune._objectives import Objectives
from raysys.tune._trial_ledger import BUDGET_SPENT
from raysys.tune._trial_process import _WorkerReporter, saved_path
from tests.tune.local_ledger import open_ledger, report_of, run, steps

SPACE: Space = {"x": Float(-5, 5), "shape": Choice(((1, 2), (3,)))}


def curve(params: dict[str, Any], round_: int) -> float:
    return -((params["x"] - 1) ** 2) - len(params["shape"]) - 1 / round_


def facts(trials: list[Trial]) -> list[tuple[object, ...]]:
    """All of the trials but times."""
    return [
        (t.number, t.params, t.state, t.parent, t.start_round, [m["y"] for m in t.rounds])
        for t in trials
    ]


@pytest.mark.parametrize("method", ["tpe", "bohb", Population(size=3, every=2)])
def test_a_search_interrupted_at_any_moment_ends_like_an_uninterrupted_one(
    tmp_path: Path, method: Any
) -> None:
    options: dict[str, Any] = {"method": method, "n_trials": 12, "max_rounds": 8}
    whole = open_ledger(Storage(tmp_path / "whole"), SPACE, **options)
    copies = []
    for moment, _ in enumerate(steps(whole, curve)):
        shutil.copytree(tmp_path / "whole", copy := tmp_path / str(moment))
        copies.append(copy)
    expected = facts([whole.trials[number] for number in sorted(whole.trials)])
    assert len(copies) == 2 * len(expected)
    for copy in copies[:: 1 if isinstance(method, Population) else 5]:
        again = open_ledger(Storage(copy), SPACE, **options)
        assert facts(run(again, curve)) == expected
    finished = open_ledger(Storage(tmp_path / "whole"), SPACE, **options)
    assert finished.complete


def test_ended_trials_are_not_repeated(storage: Storage) -> None:
    first = run(open_ledger(storage, SPACE, n_trials=4), curve)
    more = open_ledger(storage, SPACE, n_trials=6)
    proposed = [trial.number for trial in steps(more, curve)]
    assert proposed == [4, 4, 5, 5]
    assert facts([more.trials[number] for number in range(4)]) == facts(first)


def test_a_repeated_report_counts_once(storage: Storage) -> None:
    ledger = open_ledger(storage, SPACE, n_trials=1, max_rounds=3)
    ledger.next_trial()
    for _ in range(2):
        assert not ledger.record(0, report_of(1, {"y": 1.0}))
    assert len(ledger.trials[0].rounds) == 1


def test_a_certain_failure_ends_a_search_of_which_no_trial_has_run(storage: Storage) -> None:
    failure = {"failed": "two workers in the place of one", "certain": True}
    ledger = open_ledger(storage, SPACE, n_trials=9, max_failed_trials=5)
    ledger.next_trial()
    assert ledger.record(0, failure)
    assert ledger.broken
    assert ledger.next_trial() == "end"
    again = open_ledger(storage, SPACE, n_trials=9, max_failed_trials=5)
    assert isinstance(trial := again.next_trial(), Trial)
    assert trial.number == 0
    again.record(0, report_of(1, {"y": 1.0}))
    again.next_trial()
    again.record(1, failure)  # so its own parameters are the cause
    assert (again.trials[1].state, again.broken) == ("failed", False)


@pytest.mark.parametrize("budget", [{"timeout_s": 1e-9}, {"cpu_hours": 1e-12}])
def test_a_spent_budget_stops_the_trial_at_its_next_round_and_starts_no_more(
    storage: Storage, budget: dict[str, Any]
) -> None:
    ledger = open_ledger(storage, SPACE, n_trials=5, max_rounds=9, cpus=4.0)
    assert isinstance(ledger.next_trial(), Trial)
    again = open_ledger(storage, SPACE, n_trials=5, max_rounds=9, cpus=4.0, **budget)
    (trial,) = run(again, curve)
    assert (trial.state, trial.reason, trial.last_round) == ("stopped", BUDGET_SPENT, 1)
    assert again.complete


def test_cpu_hours_are_reserved_cpus_times_the_duration_of_trials() -> None:
    limits, two_cpus = SearchLimits(cpu_hours=1.0), Resources(cpus=2, gpus=0)
    assert not limits.reached(seconds=1e9, trial_seconds=1799.0, per_trial=two_cpus)
    assert limits.reached(seconds=0.0, trial_seconds=1800.0, per_trial=two_cpus)


def test_at_most_max_concurrent_trials_run_at_a_time(storage: Storage) -> None:
    ledger = open_ledger(storage, SPACE, n_trials=9, max_concurrent=2)
    assert [isinstance(ledger.next_trial(), Trial) for _ in range(3)] == [True, True, False]
    ledger.record(0, {"failed": "no"})
    assert isinstance(ledger.next_trial(), Trial)


def test_too_many_failures_end_a_search_and_the_next_call_repeats_them(
    storage: Storage,
) -> None:
    ledger = open_ledger(storage, SPACE, n_trials=9, max_failed_trials=1)
    for number in range(2):
        assert isinstance(ledger.next_trial(), Trial)
        assert not ledger.broken
        ledger.record(number, {"failed": "no memory"})
    assert ledger.broken
    assert ledger.next_trial() == "end"
    params = [ledger.trials[number].params for number in range(2)]
    again = run(open_ledger(storage, SPACE, n_trials=9, max_failed_trials=1), curve)
    assert {trial.state for trial in again} == {"finished"}
    assert [trial.params for trial in again[:2]] == params


def test_a_trial_whose_file_was_removed_is_run_again_and_no_other_is_lost(
    storage: Storage,
) -> None:
    first = run(open_ledger(storage, SPACE, n_trials=4, method="random"), curve)
    storage.remove("trials/00001.json")
    again = run(open_ledger(storage, SPACE, n_trials=4, method="random"), curve)
    assert [trial.number for trial in again] == [0, 1, 2, 3]
    assert [trial.params for trial in again] == [trial.params for trial in first]
    assert [trial.ended == old.ended for trial, old in zip(again, first, strict=True)] == [
        True, False, True, True,
    ]  # fmt: skip


def test_a_single_failure_is_recorded_and_not_repeated(storage: Storage) -> None:
    ledger = open_ledger(storage, SPACE, n_trials=3, max_failed_trials=1)
    assert isinstance(ledger.next_trial(), Trial)
    ledger.end(0, "its process died")
    assert [trial.state for trial in run(ledger, curve)] == ["failed", "finished", "finished"]
    (failed,) = open_ledger(storage, SPACE, n_trials=3, max_failed_trials=1).failed
    assert failed.reason == "its process died"


def test_a_name_with_a_different_identity_is_refused(storage: Storage) -> None:
    for n_trials in (1, 2):
        ledger = open_ledger(storage, SPACE, n_trials=n_trials)
        ledger.check_identity("first", {"seed": 0, "max_rounds": 3}, [])
    with pytest.raises(RaysysError, match="seed 0, now 1"):
        ledger.check_identity("first", {"seed": 1, "max_rounds": 3}, [])


def test_only_the_checkpoint_of_the_best_trial_stays(storage: Storage) -> None:
    ledger = open_ledger(storage, SPACE, n_trials=6)
    for trial in steps(ledger, curve):
        with storage.new_dir(f"trials/{trial.number:05d}/round-00001") as folder:
            (folder / "rounds.json").write_text("[]")
    best = max(ledger.trials.values(), key=lambda trial: trial.rounds[0]["y"])
    ledger._remove_checkpoints()
    folders = [name for name in storage.names("trials") if not name.endswith(".json")]
    assert folders == [f"{best.number:05d}"]


def test_damaged_rounds_of_a_trial_are_said_with_the_way_out(storage: Storage) -> None:
    trial = Trial(0, {"x": 1.0})
    objectives = Objectives({"y": "maximize"})
    saved = saved_path(0, 3)
    storage.write_bytes(f"{saved}/rounds.json", b'[{"y": 1.0}, {')
    reporter = _WorkerReporter(trial, storage, objectives, nested_cpus=0.0)
    with pytest.raises(StorageError, match=rf"14 bytes .*: remove {storage.uri(saved)}, "):
        reporter.resume()
