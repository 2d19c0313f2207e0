"""Tuning the training itself: how fast, how dear and how good, by short measured runs."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any

import ray

from raysys import cluster
from raysys.console import say
from raysys.errors import RaysysError
from raysys.tune.throughput._candidates import check_space, default_space, demand
from raysys.tune.throughput._decisions import recommend
from raysys.tune.throughput._result import Throughput
from raysys.tune.throughput._tracking import record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    from raysys.data import Table
    from raysys.storage import Storage
    from raysys.train import TrainingTask, TrainSettings

_LOSS_SHARE = 1 / 15  # of the budget, for one run of the defaults up to their loss
_FEWEST_STEPS = 30  # of such a run


def tune_throughput(
    name: str,
    task: TrainingTask,
    tables: Mapping[str, Table],
    settings: TrainSettings,
    storage: Storage,
    *,
    budget_s: float = 120.0,
    samples: int | None = None,
    metric: str | None = None,
    mode: Literal["min", "max"] = "min",
    space: Mapping[str, Sequence[Any]] | None = None,
    price_per_hour: float | None = None,
) -> Throughput:
    """Find settings under which a task trains fastest, or cheapest, without learning less.

    Worker processes are started once, and configurations tried in them one after another:

    1. The defaults are measured, with their loss under three seeds, whose spread is the noise.
    2. One setting after another is changed; a challenger's steps are taken in turns with those of
       the best so far, and it becomes the best if it is at least 3 % faster in most rounds. One
       that is hopeless in the first round gets no second one.
    3. From two batch sizes a step's time is known as a + b * batch. Sizes that should bring more
       samples per second are tried upwards, each with its learning rate scaled by the square
       root and in proportion, as long as the loss after the same number of samples is no worse.
    4. The settings before are tried once more at the new batch size; torch.compile only if the
       run is so long that compiling can pay.
    5. The fastest is trained under all seeds, and measured once more beside the defaults; if its
       loss is worse, the next takes its place.

    What fails is listed with the reason. The strategy is that of the settings, or what
    `train.plan` says where that one fails; give `space` to try several.

    Args:
        name: Of the search.
        task: What is trained.
        tables: Given to its `prepare`.
        settings: The defaults to beat. Their `epochs` say how long the run will be that is tuned.
        storage: Says where the search is recorded: a run, with a child for each configuration.
        budget_s: About how long to search, in seconds from when the first workers are there.
        samples: To train on for each loss; by default what the budget allows, the whole run at
            most. The learning rate's schedule is as long.
        metric: One of what the task's `evaluate` measures; the mean training loss of the last
            quarter by default.
        mode: Whether less or more of it is better.
        space: Values by the setting's name, tried instead of all others.
        price_per_hour: Of a CPU, or of a GPU where there are GPUs: the cost is in this money, else
            in seconds that they are held.

    Raises:
        ResourceError: The defaults, or the space, do not fit on the cluster.
        TrainError: The defaults do not work.
        RaysysError: The space or the metric is unknown.
    """
    from raysys import train
    from raysys.tune.throughput._measurement import Bench
    from raysys.tune.throughput._search_order import search

    started = time.monotonic()
    check_space(space or {})
    have = cluster.resources()
    gpus = int(have.gpus) if have.gpus >= settings.num_workers else 0
    cpus, workers = demand(space, settings, _cores(), gpus)
    with train.TrialSession(task, tables, settings, max_cpus=cpus, max_workers=workers) as session:
        values = space or default_space(settings, session.machine)
        bench = Bench(
            name, session,
            ends=time.monotonic() + budget_s, metric=metric, sign=1.0 if mode == "min" else -1.0,
            price_per_hour=price_per_hour,
            plan=lambda: train.plan(task, tables, settings).settings,
        )  # fmt: skip
        bench.start(settings)
        whole = settings.epochs * session.machine.examples
        if settings.max_steps:
            whole = min(whole, settings.max_steps * settings.batch_size)
        if samples is None:
            affordable = budget_s * _LOSS_SHARE * (bench.speed(0))
            samples = int(max(affordable, _FEWEST_STEPS * settings.batch_size))
        bench.samples = min(samples, whole)
        search(bench, values, whole)
    best, reason = recommend(bench.tried, whole)
    found = Throughput(
        name=name,
        tried=bench.tried,
        best=best,
        reason=reason,
        metric=metric or "train_loss",
        samples=bench.samples,
        seconds=time.monotonic() - started,
        notes=bench.notes,
    )
    say(f"[{name}] {reason}")
    record(found, storage, settings, tables)
    return found


def _cores() -> int:
    """What the nodes can really compute with, as far as Ray may give it."""

    def of_a_node() -> int:
        return len(os.sched_getaffinity(0))

    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    cores = ray.get(ray.remote(of_a_node).options(name="count cores").remote()) * nodes
    free = math.floor(cluster.resources().cpus - cluster.HEADROOM_CPUS)
    if free < 1:
        raise RaysysError("no CPU is left beside the one kept free for tasks: use a larger cluster")
    return min(cores, free)
