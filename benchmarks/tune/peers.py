"""The same search with Optuna alone and with Ray Tune alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.flight_models import ROUNDS_PER_REPORT, TRIAL_ROUNDS, boost_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import pyarrow as pa

    from raysys.data import Table
    from raysys.storage import Storage

# By trial and round: score, CPU-seconds since the trial's start.
Trials = list[list[tuple[float, float]]]
_ROUNDS = TRIAL_ROUNDS // ROUNDS_PER_REPORT


@dataclass(frozen=True)
class Target:
    """Score or CPU time at which a library stops."""

    score: float
    cpu_seconds: float

    def reached(self, trials: Trials) -> bool:
        """Whether the trials have the score or have spent the CPU time."""
        spent = sum(trial[-1][1] for trial in trials if trial)
        best = max((score for trial in trials for score, _ in trial), default=0.0)
        return best >= self.score or spent >= self.cpu_seconds


@dataclass
class PeerReporter:
    """A trial's reporter outside raysys."""

    on_round: Callable[[float, float], None]
    last_round: int = 0
    started: float = field(default_factory=time.process_time)

    def resume(self) -> Path | None:
        """No checkpoint: every trial starts anew."""
        return None

    def __call__(
        self, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None
    ) -> None:
        """Pass a round's score on, with the CPU-seconds until now."""
        self.last_round += 1
        self.on_round(metrics["auc"], time.process_time() - self.started)


def optuna_alone(arrays: Mapping[str, pa.Table], sampler: str, target: Target, seed: int) -> Trials:
    """Optuna in this process: its default TPE and median pruner, or random search."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials: Trials = []

    def objective(trial: optuna.Trial) -> float:
        rounds: list[tuple[float, float]] = []
        trials.append(rounds)

        def on_round(score: float, seconds: float) -> None:
            rounds.append((score, seconds))
            trial.report(score, len(rounds))
            if sampler == "tpe" and trial.should_prune():
                raise optuna.TrialPruned

        settings = {
            "max_depth": trial.suggest_int("max_depth", 5, 9),
            "min_child_weight": trial.suggest_float("min_child_weight", 5, 100, log=True),
            "colsample_bynode": trial.suggest_float("colsample_bynode", 0.2, 0.6),
            "reg_lambda": trial.suggest_float("reg_lambda", 1, 20, log=True),
            "learning_rate": trial.suggest_float("learning_rate", 0.05, 0.15, log=True),
        }
        boost_trial(settings, arrays, PeerReporter(on_round))
        return max(score for score, _ in rounds)

    def stop(study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
        if target.reached(trials):
            study.stop()

    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    study = optuna.create_study(direction="maximize", sampler=samplers[sampler](seed=seed))
    study.optimize(objective, callbacks=[stop])
    return trials


def ray_tune(tables: Mapping[str, Table], target: Target, seed: int, storage: Storage) -> Trials:
    """Ray Tune with its OptunaSearch and its ASHA, as in its guide."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    trials: dict[str, list[tuple[float, float]]] = {}

    class Reached(tune.Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            rounds = trials.setdefault(trial_id, [])
            if result["training_iteration"] > len(rounds):
                rounds.append((result["auc"], result["cpu_seconds"]))
            return False

        def stop_all(self) -> bool:
            return target.reached(list(trials.values()))

    def trainable(config: dict[str, Any], tables: Mapping[str, Table]) -> None:
        def on_round(score: float, seconds: float) -> None:
            tune.report({"auc": score, "cpu_seconds": seconds})

        arrays = {name: table.to_arrow() for name, table in tables.items()}
        boost_trial(config, arrays, PeerReporter(on_round))

    tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, tables=dict(tables)), {"cpu": 2}),
        param_space={
            "max_depth": tune.randint(5, 10),
            "min_child_weight": tune.loguniform(5, 100),
            "colsample_bynode": tune.uniform(0.2, 0.6),
            "reg_lambda": tune.loguniform(1, 20),
            "learning_rate": tune.loguniform(0.05, 0.15),
        },
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(metric="auc", mode="max", seed=seed),
            scheduler=ASHAScheduler(metric="auc", mode="max", max_t=_ROUNDS, grace_period=1),
            num_samples=1000,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"by-hand-{seed}", storage_path=storage.uri("by-hand"), stop=Reached(), verbose=0
        ),
    ).fit()
    return list(trials.values())
