"""The trials of a search in this process, one after the other, without Ray Tune."""

from collections.abc import Callable, Iterator
from typing import Any

from raysys.storage import Storage
from raysys.tune import (
    Objectives,
    Sampler,
    SearchLimits,
    Space,
    Trial,
    TrialResources,
    TrialScheduler,
)
from raysys.tune._proposer import Proposer
from raysys.tune._trial_ledger import TrialLedger

Curve = Callable[[dict[str, Any], int], float]
OBJECTIVES = Objectives({"y": "maximize"})


def open_ledger(
    folder: Storage, space: Space, *, method: Any = "tpe", n_trials: int | None = None,
    max_rounds: int = 1, grace_rounds: int = 1, seed: int = 0, objectives: Objectives = OBJECTIVES,
    cpus: float = 1.0, max_concurrent: int = 1, **limits: Any,
) -> TrialLedger:  # fmt: skip
    proposer = Proposer(
        Sampler(method, seed), space, objectives, TrialScheduler(max_rounds, grace_rounds)
    )
    resources = TrialResources(cpus=cpus, max_concurrent=max_concurrent)
    limits = {"max_failed_trials": 3, **limits}
    return TrialLedger(
        folder, proposer, n_trials, SearchLimits(**limits), resources, lambda trial: None
    )


def report_of(last_round: int, *rounds: dict[str, float]) -> dict[str, Any]:
    """A trial's report, with the metrics that every trial has."""
    metrics = [{"seconds": 1.0, "cpu_seconds": 1.0, **values} for values in rounds]
    return {"rounds": metrics, "last_round": last_round}


def steps(ledger: TrialLedger, curve: Curve) -> Iterator[Trial]:
    """Run all trials; yields after each write."""
    while (trial := ledger.next_trial()) != "end":
        assert not isinstance(trial, str)
        yield trial
        round_ = trial.start_round + 1
        while not ledger.record(
            trial.number, report_of(round_, {"y": curve(trial.params, round_)})
        ):
            round_ += 1
        yield trial


def run(ledger: TrialLedger, curve: Curve) -> list[Trial]:
    for _ in steps(ledger, curve):
        pass
    return [ledger.trials[number] for number in sorted(ledger.trials)]
