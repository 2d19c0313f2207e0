"""CPU time of a search to match a full grid: the flight job's booster, five parameters.

Every library gets the same trials, which report their scores and the CPU-seconds of their
process. Its figure is the CPU time until one of its trials reaches the grid's best score.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from benchmarks._figures import Report, arguments
from benchmarks.tune import peers
from jobs import flight_etl, flight_features, flight_models
from jobs.flight_models import ROUNDS_PER_REPORT, TRIAL_ROUNDS, boost_trial
from raysys import cluster, tune
from raysys.data import Table, split_by_time
from raysys.storage import Storage

SPACE: tune.Space = {
    "max_depth": tune.Integer(5, 9),
    "min_child_weight": tune.Float(5.0, 100.0, log=True),
    "colsample_bynode": tune.Float(0.2, 0.6),
    "reg_lambda": tune.Float(1.0, 20.0, log=True),
    "learning_rate": tune.Float(0.05, 0.15, log=True),
}
# The grid has the middles of 48 equal cells of the space; the quick one of 32.
CELLS = {
    "max_depth": 3,
    "min_child_weight": 2,
    "colsample_bynode": 2,
    "reg_lambda": 2,
    "learning_rate": 2,
}
ROUNDS = TRIAL_ROUNDS // ROUNDS_PER_REPORT
CAP, BAR = 0.3, 0.2  # shares of the grid's CPU-seconds: a library's limit, the bar
_TRIALS_A_CALL = 6


def measure(report: Report, quick: bool) -> None:
    """Run the grid once, then each library from several seeds."""
    cluster.connect()
    tables = flights(every=8 if quick else 1)
    middles: tune.Space = {
        key: _middles(domain, 2 if quick else CELLS[key]) for key, domain in SPACE.items()
    }
    with tempfile.TemporaryDirectory() as root:
        storage = Storage(root)
        grid = tune.search(
            "grid", boost_trial, tables,
            middles, storage,
            metric="auc", sampler=tune.Grid(), scheduler=tune.TrialScheduler(ROUNDS, ROUNDS),
        )  # fmt: skip
        spent = sum(trial.cpu_seconds for trial in grid.trials)
        cells = f"{len(grid.trials)} cells"
        report.add(f"search: full grid of {cells}, CPU", spent, "s")
        report.add("search: its best area under the curve", grid.best_value, "share")
        target = peers.Target(grid.best_value, CAP * spent)
        arrays = {name: table.to_arrow() for name, table in tables.items()}
        seeds = range(1 if quick else 3)
        libraries = {
            "random search": [peers.optuna_alone(arrays, "random", target, s) for s in seeds],
            "Optuna alone, TPE and its pruner": [
                peers.optuna_alone(arrays, "tpe", target, s) for s in seeds
            ],
            "Ray Tune with OptunaSearch and ASHA": [
                peers.ray_tune(tables, target, s, storage) for s in seeds
            ],
            "raysys": [ours(tables, target, s, storage) for s in seeds],
        }
    for name, runs in libraries.items():
        shares = [until(target, trials) / spent for trials in runs]
        reached = sum(share < CAP for share in shares)
        text = f"search: {name}: until the grid's best ({reached} of {len(runs)} seeds)"
        share = statistics.median(shares)
        bar = name == "raysys" and not quick  # one seed is too noisy
        report.add(text, share, "of grid", below=BAR if bar else None)
        best = statistics.median(best_within(BAR * spent, trials) for trials in runs)
        report.add(
            f"search: {name}: best at a fifth, over the grid's", best - grid.best_value, "AUC"
        )


def flights(every: int) -> dict[str, Table]:
    """The job's splits for its booster, with one in `every` of the training flights."""
    _, tables = flight_etl.etl(None)
    landed = tables["flights"].filter(pl.col("arr_delay").is_not_null())
    features = landed.map_blocks(flight_features.add_features, tables, name="features")
    cuts = {"validation": flight_etl.VALIDATION, "test": flight_etl.TEST}
    starts = {name: datetime.fromisoformat(start) for name, start in cuts.items()}
    splits = split_by_time(features, "departure", starts=starts)
    shares = {"train": every, "validation": 1}
    return {
        name: Table.from_arrow(_every(table, shares[name]))
        for name, table in flight_models.targets(splits).items()
    }


def ours(
    tables: dict[str, Table], target: peers.Target, seed: int, storage: Storage
) -> peers.Trials:
    """Trials of raysys; the same search is resumed, some trials at a time, until it may stop."""
    for trials in itertools.count(_TRIALS_A_CALL, _TRIALS_A_CALL):
        result = tune.search(
            f"ours-{seed}", boost_trial, tables, SPACE, storage, metric="auc", n_trials=trials,
            sampler=tune.Sampler(seed=seed), scheduler=tune.TrialScheduler(ROUNDS),
        )  # fmt: skip
        rounds = [
            [(metrics["auc"], metrics["cpu_seconds"]) for metrics in trial.rounds]
            for trial in result.trials
        ]
        if target.reached(rounds):
            return rounds
    raise AssertionError("unreachable: the count has no end")


def until(target: peers.Target, trials: peers.Trials) -> float:
    """CPU-seconds until a trial reached the score; the limit if none did."""
    before = 0.0
    for trial in trials:
        for score, seconds in trial:
            if score >= target.score:
                return min(before + seconds, target.cpu_seconds)
        before += trial[-1][1]
    return target.cpu_seconds


def best_within(cpu_seconds: float, trials: peers.Trials) -> float:
    """Best score after a number of CPU-seconds."""
    before, best = 0.0, -math.inf
    for trial in trials:
        best = max([best, *(score for score, s in trial if before + s <= cpu_seconds)])
        before += trial[-1][1]
    return best


def _middles(domain: tune.Float | tune.Integer | tune.Choice, cells: int) -> tune.Choice:
    return tune.Choice(tuple(domain.quantile((place + 0.5) / cells) for place in range(cells)))


def _every(table: Table, share: int) -> Any:
    rows = table.to_arrow()
    return rows.take(np.arange(0, len(rows), share))


def main() -> None:
    """Run it."""
    asked = arguments(__doc__ or "")
    report = Report()
    started = time.perf_counter()
    measure(report, asked.quick)
    report.add("search: the whole benchmark", time.perf_counter() - started, "s")
    report.write(asked.json)


if __name__ == "__main__":
    main()
