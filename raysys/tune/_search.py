"""A search: Optuna proposes, ASHA stops what falls behind, Ray Tune runs the trials."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raysys import cluster
from raysys.errors import RaysysError
from raysys.tune._space import Choice, Float, Integer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ray.train import Checkpoint

    from raysys.data import Table
    from raysys.storage import Storage

Space = dict[str, Float | Integer | Choice]


class Report(Protocol):
    """Given to the objective; called after each round of training.

    `save` is called in the rounds that are the trial's best so far.
    """

    def __call__(
        self, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None
    ) -> None:
        """Hand over measurements and, by `save`, write files for whoever uses the best trial."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        settings: Of the best trial.
        score: Its best.
        rounds: How many rounds it took to that.
        checkpoint: What it saved then, if it saves.
        trials: Settings, last score and rounds of all trials.
    """

    settings: dict[str, Any]
    score: float
    rounds: int
    checkpoint: Checkpoint | None
    trials: list[dict[str, Any]]


def search(
    name: str,
    objective: Callable[[dict[str, Any], Mapping[str, Any], Report], None],
    tables: Mapping[str, Table],
    space: Space,
    storage: Storage,
    *,
    metric: str,
    mode: str = "max",
    trials: int = 8,
    rounds: int = 1,
    grace_rounds: int = 1,
    defaults: Mapping[str, Any] | None = None,
    cpus_per_trial: float = 2.0,
    concurrency: int = 1,
    seed: int = 0,
) -> Found:
    """Search a space for the settings with the best score in any round of a trial.

    Proposals: the tree-structured Parzen estimator (Bergstra et al., 2011) of Optuna. Early
    stopping: asynchronous successive halving (Li et al., "A System for Massively Parallel
    Hyperparameter Tuning", 2020). With `concurrency=1` the search is reproducible: what is
    proposed and stopped depends on the order in which trials report.

    Args:
        name: The search's folder under the storage root.
        objective: Called in a worker with the settings, the tables as Arrow tables mapped
            from the object store, and a function that reports a round.
        tables: References only; they do not pass through the driver.
        space: A domain for each setting.
        storage: Where trials and checkpoints are kept.
        metric: The reported measurement to judge by.
        mode: "max" or "min".
        trials: The budget.
        rounds: How often a trial reports if it is not stopped.
        grace_rounds: Rounds that every trial may run.
        defaults: Settings that are tried first, so that a small budget never does worse.
        cpus_per_trial: Logical CPUs, and threads, of a trial.
        concurrency: Trials at a time.
        seed: Of the proposals.

    Raises:
        ResourceError: A trial can never fit on the cluster.
        RaysysError: A trial failed.
    """
    # Ray Tune's tables are for terminals; `_Progress` says one line a trial instead.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    import optuna
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    cluster.require(f"search {name}", cpus=cpus_per_trial * concurrency)

    def trial(settings: dict[str, Any], references: Mapping[str, Table]) -> None:
        done, best = 0, -math.inf

        def report(
            metrics: Mapping[str, float], save: Callable[[Path], None] | None = None
        ) -> None:
            nonlocal done, best
            done += 1
            measured = {**metrics, "round": done}
            score = metrics[metric] if mode == "max" else -metrics[metric]
            better, best = score > best, max(best, score)
            if save is None or not better:
                tune.report(measured)
                return
            with tempfile.TemporaryDirectory() as folder:
                save(Path(folder))
                tune.report(measured, checkpoint=tune.Checkpoint.from_directory(folder))

        arrays = {key: table.arrow() for key, table in references.items()}
        objective(settings, arrays, report)

    proposals = OptunaSearch(
        metric=metric,
        mode=mode,
        seed=seed,
        points_to_evaluate=[dict(defaults)] if defaults else None,
    )
    stopper = ASHAScheduler(
        time_attr="round",
        metric=metric,
        mode=mode,
        max_t=max(rounds, grace_rounds),
        grace_period=grace_rounds,
        reduction_factor=2,
    )
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(trial, references=dict(tables)), {"cpu": cpus_per_trial}
        ),
        param_space={key: domain.domain() for key, domain in space.items()},
        tune_config=tune.TuneConfig(
            search_alg=proposals,
            scheduler=stopper,
            num_samples=trials,
            max_concurrent_trials=concurrency,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage.uri("searches"),
            verbose=0,
            callbacks=[_progress(name, metric, trials)],
        ),
    )
    results = tuner.fit()
    if results.errors:
        raise RaysysError(
            f"{len(results.errors)} of {trials} trials of search {name!r} failed; the first: "
            f"{results.errors[0]}"
        ) from results.errors[0]
    best = results.get_best_result(metric, mode, scope="all")
    history = best.metrics_dataframe[metric]
    return Found(
        settings=best.config,
        score=float(history.max() if mode == "max" else history.min()),
        rounds=int(history.argmax() if mode == "max" else history.argmin()) + 1,
        checkpoint=best.get_best_checkpoint(metric, mode) if best.checkpoint else None,
        trials=[
            {**(result.config or {}), **{k: result.metrics.get(k) for k in (metric, "round")}}
            for result in results
            if result.metrics
        ],
    )


def _progress(name: str, metric: str, trials: int) -> Any:
    """A callback that says what each trial came to."""
    from ray import tune

    class Progress(tune.Callback):
        done = 0

        def on_trial_complete(self, trial: Any, **_: Any) -> None:
            self.done += 1
            last = trial.last_result
            tried = ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in trial.config.items()
            )
            print(
                f"[{name}] trial {self.done} of {trials}: {metric} {last.get(metric):.4f} after "
                f"{last.get('round')} rounds ({tried})",
                flush=True,
            )

    return Progress()
