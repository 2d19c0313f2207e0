"""Hyperparameter search: a sampler proposes, successive halving stops, Ray Tune runs the trials."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raysys.arguments import checked
from raysys.console import say
from raysys.errors import RaysysError
from raysys.identity import digest
from raysys.storage import Storage
from raysys.telemetry import metrics
from raysys.tune._objectives import Direction, Objectives
from raysys.tune._proposer import Proposer
from raysys.tune._search_result import SearchResult, format_value
from raysys.tune._search_settings import (
    Grid,
    Population,
    Sampler,
    SamplerName,
    SearchLimits,
    TrialResources,
)
from raysys.tune._space import Space, check_params
from raysys.tune._successive_halving import TrialScheduler
from raysys.tune._tracking import SearchTracker
from raysys.tune._trial_ledger import FOLDER, TrialLedger, warm_start_trials

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.tune._trial import Trial

_NO_LIMITS, _ONE_ROUND, _TWO_CPUS = SearchLimits(), TrialScheduler(), TrialResources()
_log = logging.getLogger("raysys.tune")


@checked
def search(
    name: str,
    objective: Callable[..., None],
    tables: Mapping[str, Table],
    space: Space,
    storage: Storage,
    *,
    metric: str | Mapping[str, Direction],
    direction: Direction = "maximize",
    n_trials: int | None = None,
    limits: SearchLimits = _NO_LIMITS,
    sampler: SamplerName | Grid | Population | Sampler = "tpe",
    scheduler: TrialScheduler = _ONE_ROUND,
    resources: TrialResources = _TWO_CPUS,
) -> SearchResult:
    """Search a space for the parameters with the best value in any round of a trial.

    The same call with the same name resumes an interrupted search: trials that ended are not
    repeated, one that was running resumes from its last saved round if its objective calls
    `report.resume()`. A larger budget adds trials. With one trial at a time the search is
    reproducible, interrupted or not.

    Example:
        result = search(
            "boosting", objective, {"train": table}, {"depth": Integer(3, 9)}, storage,
            metric={"auc": "maximize", "cpu_seconds": "minimize"}, n_trials=20,
        )
        print(result.table())

    Args:
        name: Name of the search, and of its folder under the storage root.
        objective: Called in a worker with the parameters, the tables as Arrow tables mapped
            from the object store, and a `TrialReporter`.
        tables: Tables for the objective, passed by reference and not through the driver.
        space: Domain of each parameter.
        storage: Storage of trials and checkpoints.
        metric: Reported metric to optimize; or several with their directions, and then no trial
            is stopped early. `seconds` and `cpu_seconds` are measured for every trial.
        direction: Direction of a single metric.
        n_trials: Number of trials; optional with a limit, or a sampler that ends.
        limits: Limits of time, resources and failures.
        sampler: Method, or a `Sampler` with a seed, parameters to begin with, and earlier
            searches to learn from.
        scheduler: Rounds of a trial, and rounds before it may be stopped early.
        resources: Resources of each trial, and trials at a time.

    Raises:
        ResourceError: The trials can never fit on the cluster, with what they start.
        RaysysError: Too many trials failed, or one by an error that every trial would meet, such
            as a reservation too small for the training inside it; or the name belongs to a
            different search.
    """
    objectives = Objectives({metric: direction} if isinstance(metric, str) else dict(metric))
    if not space:
        raise RaysysError(f"search {name!r} has an empty space: give it a domain a parameter")
    sampler = sampler if isinstance(sampler, Sampler) else Sampler(sampler)
    check_params("enqueue", sampler.enqueue, space)
    proposer = Proposer(sampler, space, objectives, scheduler)
    if n_trials is None and proposer.max_trials is None and not limits.bounded:
        raise RaysysError(
            f"search {name!r} has no end: give n_trials, or limits=SearchLimits(...) with "
            "timeout_s, cpu_hours or gpu_hours"
        )
    folder = Storage(storage.uri(f"{FOLDER}/{name}"))

    def on_end(trial: Trial) -> None:
        say(_trial_line(name, trial, objectives, n_trials or proposer.max_trials))
        tracker.log_trial(trial)
        _count(name, trial, ledger, objectives)
        if trial.state == "failed":
            if trial.traceback and sum(bool(failed.traceback) for failed in ledger.failed) == 1:
                say(trial.traceback)  # once: others are most often the same
            _log.info(
                "trial %d failed, %d of max_failed_trials=%d: %s",
                trial.number, len(ledger.failed), ledger.max_failed, trial.reason,
                extra={"search": name},
            )  # fmt: skip

    ledger = TrialLedger(folder, proposer, n_trials, limits, resources, on_end)
    identity = {
        "space": {key: repr(domain) for key, domain in space.items()},
        "metric": objectives.directions,
        "sampler": sampler.method if isinstance(sampler.method, str) else repr(sampler.method),
        "max_rounds": scheduler.max_rounds,
        "grace_rounds": min(scheduler.grace_rounds, scheduler.max_rounds),
        "enqueue": dict(sampler.enqueue),
        "seed": sampler.seed,
        "objective": f"{_name_of(objective)} {digest(objective, strict=False)}",
        "tables": {key: table.fingerprint() for key, table in tables.items()},
    }
    ledger.check_identity(name, identity, warm_start_trials(name, proposer, storage))
    if not ledger.complete:
        resources.require(name)
        from raysys.tune._ray_tune import run  # loads ray.tune

        settings = {key: value for key, value in identity.items() if key != "tables"}
        settings |= {"n_trials": n_trials, **asdict(limits), **asdict(resources.total)}
        tracker = SearchTracker(storage, folder, name, objectives, settings, tables)
        try:
            run(name, ledger, objective, tables, resources)
        finally:
            tracker.end(*_outcome(ledger, objectives))
    return _result(name, ledger, objectives)


def _name_of(objective: Any) -> str:
    return str(getattr(objective, "__qualname__", type(objective).__qualname__))


def _count(name: str, trial: Trial, ledger: TrialLedger, objectives: Objectives) -> None:
    """Update the metrics for a trial that has ended."""
    metrics.TUNE_TRIALS.inc(1, {"search": name, "state": trial.state})
    if objectives.single and (best := objectives.best_trial([*ledger.trials.values()])):
        tags = {"search": name, "metric": objectives.metric}
        metrics.TUNE_BEST_SCORE.set(objectives.metrics(best)[objectives.metric], tags)


def _outcome(ledger: TrialLedger, objectives: Objectives) -> tuple[str, dict[str, float]]:
    """Status and results for the run's record."""
    status = "FAILED" if ledger.broken else "KILLED" if ledger.unfinished else "FINISHED"
    trials = list(ledger.trials.values())
    results = {"cpu_seconds of all trials": sum(trial.cpu_seconds for trial in trials)}
    if objectives.single and (best := objectives.best_trial(trials)):
        results[f"best {objectives.metric}"] = objectives.metrics(best)[objectives.metric]
    return status, results


def _result(name: str, ledger: TrialLedger, objectives: Objectives) -> SearchResult:
    """The search's result, or the error that it ended with."""
    failed, trials = ledger.failed, [ledger.trials[number] for number in sorted(ledger.trials)]
    summary = f"{len(failed)} of {len(trials)} trials of search {name!r} failed"
    first = f"the first, trial {failed[0].number}: {failed[0].reason}" if failed else ""
    if certain := next((trial for trial in failed if trial.certain), None):
        raise RaysysError(
            f"search {name!r} ends with trial {certain.number}, whose error every trial would "
            f"meet: {certain.reason}. Then call again, under another name if the objective changes"
        )
    if ledger.broken or (failed and not any(trial.rounds for trial in trials)):
        raise RaysysError(
            f"{summary}, more than max_failed_trials={ledger.max_failed} or all; {first}. The "
            "same call tries them again and continues"
        )
    if ledger.unfinished:
        say(f"[{name}] interrupted; the same call resumes the search")
        raise KeyboardInterrupt(f"search {name!r} was interrupted; the same call resumes it")
    if not any(trial.rounds for trial in trials):
        raise RaysysError(f"search {name!r} had no time for a single trial: give a larger budget")
    if failed:
        say(f"[{name}] {summary}; {first}")
    return SearchResult(name, objectives, trials, ledger.folder)


def _trial_line(name: str, trial: Trial, objectives: Objectives, count: int | None) -> str:
    """Progress line of a trial that has ended."""
    total = f" ({trial.number + 1} of {count})" if count else ""
    params = ", ".join(f"{key} {format_value(value)}" for key, value in trial.params.items())
    outcome = f"failed: {trial.reason}"
    if trial.state != "failed":
        final = objectives.metrics(trial)
        values = ", ".join(f"{metric} {final[metric]:.4f}" for metric in objectives.directions)
        stopped = "stopped " if trial.state == "stopped" else ""
        outcome = f"{values} {stopped}after {trial.last_round} rounds"
    return f"[{name}] trial {trial.number}{total}: {outcome} ({params})"
