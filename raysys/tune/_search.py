"""A search: a model proposes, what falls behind is stopped, Ray Tune runs the trials."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raysys import cluster
from raysys.console import say
from raysys.errors import RaysysError, ResourceError
from raysys.storage import Storage
from raysys.telemetry import metrics
from raysys.tune._search_result import Found
from raysys.tune._searchers import Grid, Plan, Searcher
from raysys.tune._space import Space, check_settings
from raysys.tune._trial import Direction, Goal, Trial
from raysys.tune._trial_ledger import Budget, Ledger, begin, read_trials

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raysys.data import Table

_FOLDER = "searches"
_log = logging.getLogger("raysys.tune")


def search(
    name: str,
    objective: Callable[..., None],
    tables: Mapping[str, Table],
    space: Space,
    storage: Storage,
    *,
    metric: str | Mapping[str, Direction],
    mode: Direction = "max",
    searcher: Searcher = "tpe",
    trials: int | None = None,
    seconds: float | None = None,
    cpu_hours: float | None = None,
    gpu_hours: float | None = None,
    rounds: int = 1,
    grace_rounds: int = 1,
    defaults: Mapping[str, Any] | None = None,
    earlier: Sequence[str | Found] = (),
    cpus_per_trial: float = 2.0,
    gpus_per_trial: float = 0.0,
    nested: cluster.Resources | None = None,
    concurrency: int = 1,
    max_failed: int | None = None,
    seed: int = 0,
) -> Found:
    """Search a space for the settings with the best score in any round of a trial.

    The same call with the same name goes on where an earlier one was cut off: trials that ended
    are not repeated, one that ran goes on from its last saved round if its objective calls
    `report.resume()`. A larger budget adds trials. With `concurrency=1` the search is
    reproducible, cut off or not: what is proposed and stopped depends on which trials have
    reported.

    Example:
        found = search(
            "boosting", objective, {"train": table}, {"depth": Integer(3, 9)}, storage,
            metric={"auc": "max", "cpu_seconds": "min"}, trials=20,
        )
        print(found.table())

    Args:
        name: The search's folder under the storage root.
        objective: Called in a worker with the settings, the tables as Arrow tables mapped
            from the object store, and a `Report`.
        tables: References only; they do not pass through the driver.
        space: A domain for each setting.
        storage: Where trials and checkpoints are kept.
        metric: The reported measurement to judge by; or several with their directions, and
            then nothing is stopped early. `seconds` and `cpu_seconds` of a trial's rounds are
            measured for every trial.
        mode: "max" or "min", of a single measurement.
        searcher: "tpe" (Parzen estimators), "gp" (Gaussian process), "random" and `Grid` with
            asynchronous successive halving; "bohb" (Parzen estimators in Hyperband's brackets);
            `Population` (population-based training).
        trials: Budget: how many. At least one budget is needed, unless the searcher has an end.
        seconds: Budget: wall clock.
        cpu_hours: Budget: logical CPUs held by trials and their nested workers, times hours.
        gpu_hours: Budget: the same with GPUs.
        rounds: How often a trial reports if it is not stopped.
        grace_rounds: Rounds that every trial may run; `rounds` stops none early.
        defaults: Settings that are tried first, so that a small budget never does worse.
        earlier: Searches to learn from: names in the same storage, folders, or what they
            found. Their trials count for "tpe", "gp" and "bohb"; a population starts with the
            best. Trials that this space does not have are left out.
        cpus_per_trial: Logical CPUs, and threads, of a trial.
        gpus_per_trial: Of a trial.
        nested: What training inside a trial may ask the cluster for, beside the trial itself.
        concurrency: Trials at a time.
        max_failed: Trials that may fail before the search gives up; a fifth of the trials, at
            least one, if not given.
        seed: Of the proposals.

    Raises:
        ResourceError: The trials can never fit on the cluster, with what they start.
        RaysysError: Too many trials failed, or the name was searched with something else.
    """
    goal = Goal.of(metric, mode)
    if not space:
        raise RaysysError(f"search {name!r} has an empty space: give it a domain for each setting")
    check_settings("defaults", defaults or {}, space)
    grace = min(grace_rounds, rounds)
    plan = Plan(searcher, space, goal, rounds, grace, dict(defaults or {}), seed)
    limits = (trials, seconds, cpu_hours, gpu_hours, plan.most)
    if all(limit is None for limit in limits):
        raise RaysysError(
            f"search {name!r} has no end: give trials, seconds, cpu_hours or gpu_hours"
        )
    nested = nested or cluster.Resources(cpus=0, gpus=0)
    each = cluster.Resources(cpus_per_trial + nested.cpus, gpus_per_trial + nested.gpus)
    count = trials or plan.most
    budget = Budget(
        trials=trials,
        seconds=seconds,
        cpu_hours=cpu_hours,
        gpu_hours=gpu_hours,
        cpus=each.cpus,
        gpus=each.gpus,
        failed=max(1, (count or 15) // 5) if max_failed is None else max_failed,
    )
    folder = Storage(storage.uri(f"{_FOLDER}/{name}"))

    def on_end(trial: Trial) -> None:
        say(_line(name, trial, goal, count))
        tracker.trial(trial)
        _report(name, trial, ledger, goal)
        if trial.state == "failed":
            _log.info(
                "trial %d failed, %d of max_failed=%d: %s",
                trial.number, len(ledger.failed), budget.failed, trial.reason,
                extra={"search": name},
            )  # fmt: skip

    ledger = Ledger(folder, plan, budget, concurrency, on_end)
    facts = {
        "space": {key: repr(domain) for key, domain in space.items()},
        "metric": goal.metrics,
        "searcher": searcher if isinstance(searcher, str) else repr(searcher),
        "rounds": rounds,
        "grace_rounds": grace,
        "defaults": dict(defaults or {}),
        "seed": seed,
        "tables": {key: table.fingerprint() for key, table in tables.items()},
    }
    begin(name, ledger, facts, _known(name, earlier, plan, storage))
    if not ledger.complete:
        _check_demand(name, each, cpus_per_trial, nested, concurrency)
        from raysys.tune._ray_tune import run
        from raysys.tune._tracking import Tracker

        settings = {key: value for key, value in facts.items() if key != "tables"}
        tracker = Tracker(storage, folder, name, goal, {**settings, **asdict(budget)}, tables)
        try:
            run(
                name, ledger, objective, tables,
                cpus=cpus_per_trial, gpus=gpus_per_trial, nested=nested,
            )  # fmt: skip
        finally:
            tracker.end(*_outcome(ledger, goal))
    return _result(name, ledger, goal)


def _report(name: str, trial: Trial, ledger: Ledger, goal: Goal) -> None:
    """Metrics of a trial that has ended."""
    metrics.TUNE_TRIALS.inc(1, {"search": name, "state": trial.state})
    best = goal.best([*ledger.trials.values()]) if goal.single else None
    if best:
        metrics.TUNE_BEST_SCORE.set(
            goal.measured(best)[goal.name], {"search": name, "metric": goal.name}
        )


def _outcome(ledger: Ledger, goal: Goal) -> tuple[str, dict[str, float]]:
    """Status and results for the record."""
    status = "FAILED" if ledger.broken else "KILLED" if ledger.unfinished else "FINISHED"
    trials = list(ledger.trials.values())
    best = goal.best(trials) if goal.single else None
    results = {f"best {name}": goal.measured(best)[name] for name in goal.metrics} if best else {}
    spent = {"cpu_seconds of all trials": sum(trial.cpu_seconds for trial in trials)}
    return status, results | spent


def _result(name: str, ledger: Ledger, goal: Goal) -> Found:
    """What was found, or why nothing was."""
    failed, trials = ledger.failed, [ledger.trials[n] for n in sorted(ledger.trials)]
    if ledger.broken or (failed and not any(trial.rounds for trial in trials)):
        raise RaysysError(
            f"{len(failed)} of {len(trials)} trials of search {name!r} failed, more than "
            f"max_failed={ledger.budget.failed} or all; the first, trial {failed[0].number}: "
            f"{failed[0].reason}. The same call tries them again and goes on"
        )
    if ledger.unfinished:
        say(f"[{name}] interrupted; the same call goes on from here")
        raise KeyboardInterrupt(f"search {name!r} was interrupted; the same call goes on")
    if not any(trial.rounds for trial in trials):
        raise RaysysError(f"search {name!r} had no time for a single trial: give a larger budget")
    if failed:
        print(
            f"[{name}] {len(failed)} of {len(trials)} trials failed; the first, trial "
            f"{failed[0].number}: {failed[0].reason}",
            flush=True,
        )
    return Found(name, goal, trials, ledger.folder)


def _check_demand(
    name: str, each: cluster.Resources, own_cpus: float, nested: cluster.Resources, concurrency: int
) -> None:
    """Refuse trials that would wait for each other's workers for ever, and say what fits."""
    made_of = f" ({own_cpus:g} + {nested.cpus:g} nested)" if nested.cpus or nested.gpus else ""
    purpose = f"search {name!r}, {concurrency} at a time with {each.cpus:g} CPUs{made_of} each,"
    try:
        cluster.require(purpose, cpus=concurrency * each.cpus, gpus=concurrency * each.gpus)
    except ResourceError as error:
        have = cluster.resources()
        fits = int((have.cpus - cluster.HEADROOM_CPUS) // each.cpus) if each.cpus else concurrency
        if each.gpus:
            fits = min(fits, int(have.gpus // each.gpus))
        most = f"concurrency={fits} fits" if fits > 0 else "not even one trial fits"
        raise ResourceError(f"{error}. Of these trials {most}") from None


def _known(name: str, earlier: Sequence[str | Found], plan: Plan, storage: Storage) -> list[Trial]:
    """Trials of earlier searches that this one can learn from."""
    if earlier and (plan.searcher == "random" or isinstance(plan.searcher, Grid)):
        raise RaysysError(
            f"searcher={plan.searcher!r} learns nothing from earlier searches: leave earlier out, "
            "or search with 'tpe', 'gp', 'bohb' or Population(...)"
        )
    known = []
    for one in earlier:
        if isinstance(one, Found):
            trials = one.trials
        else:
            whole = "://" in one or one.startswith("/")
            folder = Storage(one if whole else storage.uri(f"{_FOLDER}/{one}"))
            trials = read_trials(folder, plan.space)
            if not trials:
                raise RaysysError(f"earlier={one!r}: there are no trials in {folder.root}")
        fitting = [trial for trial in trials if _fits(trial, plan)]
        print(
            f"[{name}] learns from {len(fitting)} of {len(trials)} trials of "
            f"{one.name if isinstance(one, Found) else one}; the others failed or have settings "
            "or measurements that this search has not",
            flush=True,
        )
        known += fitting
    return known


def _fits(trial: Trial, plan: Plan) -> bool:
    return (
        trial.state in ("finished", "stopped")
        and bool(trial.rounds)
        and trial.settings.keys() == plan.space.keys()
        and all(value in plan.space[key] for key, value in trial.settings.items())
        and all(metric in trial.rounds[-1] for metric in plan.goal.metrics)
    )


def _line(name: str, trial: Trial, goal: Goal, count: int | None) -> str:
    """One line for a trial that has ended."""
    of = f" of {count}" if count else ""
    tried = ", ".join(f"{key} {_said(value)}" for key, value in trial.settings.items())
    came_to = f"failed: {trial.reason}"
    if trial.state != "failed":
        measured = goal.measured(trial)
        scores = ", ".join(f"{metric} {measured[metric]:.4f}" for metric in goal.metrics)
        stopped = "stopped " if trial.state == "stopped" else ""
        came_to = f"{scores} {stopped}after {trial.done} rounds"
    return f"[{name}] trial {trial.number + 1}{of}: {came_to} ({tried})"


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
