"""Batches for one worker, optionally prepared ahead in a thread."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from raysys.errors import TrainError
from raysys.train._failures import task_errors
from raysys.train.strategies._strategy import MicroBatch

if TYPE_CHECKING:
    from raysys.train._settings import TrainSettings
    from raysys.train._task import TrainingTask


def micro_batches(
    task: TrainingTask,
    settings: TrainSettings,
    examples: int,
    *,
    data_shard: tuple[int, int],
    steps: range,
    device: str,
) -> Iterator[list[MicroBatch]]:
    """Micro-batches of a worker's shard of each step.

    The examples of a step, and what the task draws for it, are a function of (seed, epoch, step)
    alone: a resumed run, with any number of workers, takes the steps of an undisturbed one.
    `data_shard` is that of the `Strategy`.
    """
    shard, shards = data_shard
    epoch_steps = steps_per_epoch(examples, settings)
    smallest = min(settings.batch_size, examples)
    if smallest < shards * settings.gradient_accumulation_steps:
        raise TrainError(
            f"{smallest} examples per step are too few for {shards} workers with "
            f"gradient_accumulation_steps={settings.gradient_accumulation_steps} micro-batches "
            "each: lower one of them, or raise batch_size"
        )

    @functools.lru_cache(1)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng([settings.seed, epoch]).permutation(examples)

    def step_batches(step: int) -> list[MicroBatch]:
        epoch, within = divmod(step, epoch_steps)
        rows = order(epoch)[within * settings.batch_size : (within + 1) * settings.batch_size]
        micro = []
        for part in np.array_split(rows[shard::shards], settings.gradient_accumulation_steps):
            # A fresh generator per micro-batch: all of a step draw the same.
            rng = np.random.default_rng([settings.seed, epoch, within])
            with task_errors(task, "batch"):
                batch = {name: value.to(device) for name, value in task.batch(part, rng).items()}
            micro.append(MicroBatch(batch, len(part) * shards / len(rows)))
        return micro

    depth = settings.prefetch_batches
    return _prefetched(step_batches, steps, depth) if depth else map(step_batches, steps)


def steps_per_epoch(examples: int, settings: TrainSettings) -> int:
    """Full global batches in an epoch; the remainder is dropped until the next shuffle."""
    return max(1, examples // settings.batch_size)


def _prefetched(
    step_batches: Callable[[int], list[MicroBatch]], steps: range, depth: int
) -> Iterator[list[MicroBatch]]:
    """Batches of the steps, prepared in a thread: `depth` wait, and one is in the making."""
    thread, ahead = ThreadPoolExecutor(1), iter(steps)
    waiting = deque(thread.submit(step_batches, s) for s in itertools.islice(ahead, depth + 1))
    try:
        while waiting:
            micro = waiting.popleft().result()
            waiting.extend(thread.submit(step_batches, s) for s in itertools.islice(ahead, 1))
            yield micro
    finally:
        thread.shutdown(cancel_futures=True)
