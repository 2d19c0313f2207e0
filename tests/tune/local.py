"""Runs a search's trials in this process, one after the other, without Ray Tune."""

from collections.abc import Callable, Iterator
from typing import Any

from raysys.storage import Storage
from raysys.tune import Goal, Searcher, Space, Trial
from raysys.tune._searchers import Plan
from raysys.tune._trial_ledger import Budget, Ledger

Curve = Callable[[dict[str, Any], int], float]


def open_ledger(
    folder: Storage, space: Space, *, searcher: Searcher = "tpe", trials: int | None = None,
    rounds: int = 1, grace: int = 1, seed: int = 0, goal: Goal | None = None, concurrency: int = 1,
    **budget: Any,
) -> Ledger:  # fmt: skip
    limits = {"seconds": None, "cpu_hours": None, "gpu_hours": None, "cpus": 1.0, "gpus": 0.0}
    plan = Plan(searcher, space, goal or Goal({"y": "max"}), rounds, grace, {}, seed)
    limits |= {"failed": 3, **budget}
    return Ledger(folder, plan, Budget(trials=trials, **limits), concurrency, lambda trial: None)


def steps(ledger: Ledger, curve: Curve) -> Iterator[Trial]:
    """Run all trials; yields whenever something was written down."""
    while (trial := ledger.next()) != "end":
        assert not isinstance(trial, str)
        yield trial
        done = trial.first
        while True:
            done += 1
            measured = {"y": curve(trial.settings, done), "seconds": 1.0, "cpu_seconds": 1.0}
            stop = ledger.take(trial.number, {"rounds": [measured], "done_rounds": done})
            if stop:
                break
        yield trial


def run(ledger: Ledger, curve: Curve) -> list[Trial]:
    for _ in steps(ledger, curve):
        pass
    return [ledger.trials[number] for number in sorted(ledger.trials)]
