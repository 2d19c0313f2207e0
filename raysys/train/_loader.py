"""Batches for one worker, optionally prepared ahead in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from raysys.errors import TrainError
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

    Args:
        task: Task that makes the batches.
        settings: Batch size, micro-batches, seed.
        examples: Number of training examples.
        data_shard: Index and number of shards; see `Strategy`.
        steps: Step numbers.
        device: Device of the module.
    """
    batches = _batches(task, settings, examples, data_shard, steps, device)
    return _prefetched(batches, settings.prefetch_batches) if settings.prefetch_batches else batches


def steps_per_epoch(examples: int, settings: TrainSettings) -> int:
    """Full global batches in an epoch; the remainder is dropped until the next shuffle."""
    return max(1, examples // settings.batch_size)


def _batches(
    task: TrainingTask,
    settings: TrainSettings,
    examples: int,
    data_shard: tuple[int, int],
    steps: range,
    device: str,
) -> Iterator[list[MicroBatch]]:
    shard, shards = data_shard
    epoch_steps = steps_per_epoch(examples, settings)
    smallest = min(settings.batch_size, examples)
    if smallest < shards * settings.gradient_accumulation_steps:
        raise TrainError(
            f"{smallest} examples per step are too few for {shards} workers with "
            f"gradient_accumulation_steps={settings.gradient_accumulation_steps} micro-batches "
            "each: lower one of them, or raise batch_size"
        )
    order = np.empty(0, np.int64)
    for step in steps:
        epoch, within = divmod(step, epoch_steps)
        if within == 0 or not len(order):
            order = np.random.default_rng([settings.seed, epoch]).permutation(examples)
        rows = order[within * settings.batch_size : (within + 1) * settings.batch_size]
        micro = []
        for part in np.array_split(rows[shard::shards], settings.gradient_accumulation_steps):
            # A fresh generator per micro-batch: all of a step draw the same.
            rng = np.random.default_rng([settings.seed, epoch, within])
            try:
                batch = {name: value.to(device) for name, value in task.batch(part, rng).items()}
            except OSError:
                raise  # from a file or a connection: new workers may well succeed
            except Exception as error:
                raise TrainError(f"{type(task).__name__}.batch failed: {error!r}") from error
            micro.append(MicroBatch(batch, len(part) * shards / len(rows)))
        yield micro


def _prefetched(batches: Iterator[list[MicroBatch]], depth: int) -> Iterator[list[MicroBatch]]:
    """The same batches, prepared in a thread up to `depth` steps ahead."""
    waiting: queue.Queue[list[MicroBatch] | BaseException | None] = queue.Queue(depth)
    ended = threading.Event()

    def put(item: list[MicroBatch] | BaseException | None) -> None:
        while not ended.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for micro in batches:
                put(micro)
                if ended.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        ended.set()
        thread.join()
