"""Tuning of a training's throughput, cost and loss by short measured runs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray

from raysys import cluster, train
from raysys.arguments import checked
from raysys.console import say
from raysys.errors import RaysysError
from raysys.tune._objectives import Objectives
from raysys.tune._tracking import log_throughput
from raysys.tune.throughput._bench import ThroughputBench
from raysys.tune.throughput._candidates import check_space, default_space, demand
from raysys.tune.throughput._coordinate_search import coordinate_search
from raysys.tune.throughput._decisions import recommend
from raysys.tune.throughput._result import ThroughputResult

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.storage import Storage
    from raysys.train import TrainingTask, TrainSettings
    from raysys.tune._objectives import Direction

_LOSS_SHARE = 1 / 15  # of the time, for one run of the defaults up to their loss
_MIN_LOSS_STEPS = 30


@checked
def tune_throughput(
    name: str,
    task: TrainingTask,
    tables: Mapping[str, Table],
    settings: TrainSettings,
    storage: Storage,
    *,
    timeout_s: float = 120.0,
    loss_samples: int | None = None,
    metric: str | None = None,
    direction: Direction = "minimize",
    space: Mapping[str, Sequence[Any]] | None = None,
    price_per_hour: float | None = None,
) -> ThroughputResult:
    """Find settings under which a task trains fastest, or cheapest, without learning less.

    Worker processes are started once, and configurations are measured in them one by one:

    1. The defaults are measured, with their loss under three seeds, whose spread is the noise.
    2. One setting after another is changed; a challenger takes steps in turns with the incumbent,
       and replaces it if it is at least 3 % faster in most rounds. Hopeless challengers get two
       rounds.
    3. Two batch sizes give a step's time as a + b * batch. Sizes that should bring more samples
       per second are tried upwards, each with its learning rate scaled by the square root and in
       proportion, as long as the loss after the same number of samples is no higher.
    4. The settings of step 2 are tried again at the new batch size; torch.compile only if the run
       is long enough for compiling to pay.
    5. The fastest is trained under all seeds, and measured once more beside the defaults; if its
       loss is higher, the next takes its place.

    Configurations that fail are listed with the reason. The strategy is that of the settings, or
    the one of `train.plan` if that fails; give `space` to try several.

    Args:
        name: Name of the search.
        task: Training task.
        tables: Tables for the task's `prepare`.
        settings: Defaults to beat. Their `epochs` give the length of the run that is tuned.
        storage: Storage whose experiment records the search: a run, with a child a trial.
        timeout_s: Approximate duration of the search, from the start of the first workers.
        loss_samples: Samples to train on for each loss; by default what the time allows, at most
            the whole run. The learning rate's schedule is as long.
        metric: A metric of the task's `evaluate`; by default the mean training loss of the last
            quarter.
        direction: Direction of the metric.
        space: Values by the setting's name, in place of the default space.
        price_per_hour: Price of a CPU, or of a GPU where there are GPUs: the cost is then in this
            currency, otherwise in seconds of reservation.

    Raises:
        ResourceError: The defaults, or the space, do not fit on the cluster.
        TrainError: The defaults fail.
        RaysysError: The space, the metric or the direction is unknown.
    """
    started = time.monotonic()
    Objectives({metric or "train_loss": direction})
    check_space(space or {})
    have = cluster.resources()
    gpus = int(have.gpus) if have.gpus >= settings.num_workers else 0
    cpus, workers = demand(space, settings, _usable_cores(), gpus)
    with train.TrialSession(task, tables, settings, max_cpus=cpus, max_workers=workers) as session:
        bench = ThroughputBench(
            name=name, session=session, deadline=time.monotonic() + timeout_s, metric=metric,
            sign=1.0 if direction == "minimize" else -1.0, price_per_hour=price_per_hour,
            plan=lambda: train.plan(task, tables, settings).settings,
        )  # fmt: skip
        bench.start(settings)
        run_samples = settings.epochs * session.machine.examples
        if settings.max_steps:
            run_samples = min(run_samples, settings.max_steps * settings.batch_size)
        if loss_samples is None:
            affordable = timeout_s * _LOSS_SHARE * bench.speed(0)
            loss_samples = int(max(affordable, _MIN_LOSS_STEPS * settings.batch_size))
        bench.loss_samples = min(loss_samples, run_samples)
        coordinate_search(bench, space or default_space(settings, session.machine), run_samples)
    best, reason = recommend(bench.trials, run_samples)
    result = ThroughputResult(
        name=name, trials=bench.trials, best_trial=best, reason=reason,
        metric=metric or "train_loss", loss_samples=bench.loss_samples,
        duration_s=time.monotonic() - started, notes=bench.notes,
    )  # fmt: skip
    say(f"[{name}] {reason}")
    log_throughput(result, storage, settings, tables)
    return result


def _usable_cores() -> int:
    """CPU cores of all nodes, at most those that Ray can assign."""

    def node_cores() -> int:
        return len(os.sched_getaffinity(0))

    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    cores = ray.get(ray.remote(node_cores).options(name="count cores").remote()) * nodes
    free = math.floor(cluster.resources().cpus - cluster.HEADROOM_CPUS)
    if free < 1:
        raise RaysysError("no CPU is left beside the one kept free for tasks: use a larger cluster")
    return min(cores, free)
