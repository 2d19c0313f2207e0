"""Batches for one worker, made ahead in a thread if asked for."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

import numpy as np

from raysys.errors import TrainError
from raysys.train.strategies._base import MicroBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raysys.train._settings import TrainSettings
    from raysys.train._task import TrainingTask


def micro_batches(
    task: TrainingTask,
    settings: TrainSettings,
    examples: int,
    *,
    share: tuple[int, int],
    steps: range,
    device: str,
) -> Iterator[list[MicroBatch]]:
    """The micro-batches of a worker's share of each step.

    Which examples a step takes, and what the task draws for it, is a function of (seed, epoch,
    step) alone: a run that goes on, with however many workers, takes the steps that an
    undisturbed one would have taken.

    Args:
        task: Makes the batches.
        settings: Batch size, micro-batches, seed.
        examples: Their number.
        share: Place and number of shares; see `Replica`.
        steps: Numbers of the steps.
        device: Where the module is.
    """
    made = _made(task, settings, examples, share, steps, device)
    return _ahead(made, settings.prefetch) if settings.prefetch else made


def steps_per_epoch(examples: int, settings: TrainSettings) -> int:
    """Whole global batches in an epoch; the incomplete rest waits for the next shuffle."""
    return max(1, examples // settings.batch_size)


def _made(
    task: TrainingTask,
    settings: TrainSettings,
    examples: int,
    share: tuple[int, int],
    steps: range,
    device: str,
) -> Iterator[list[MicroBatch]]:
    place, count = share
    an_epoch = steps_per_epoch(examples, settings)
    smallest = min(settings.batch_size, examples)
    if smallest < count * settings.accumulate:
        raise TrainError(
            f"{smallest} examples a step cannot be shared by {count} workers in "
            f"accumulate={settings.accumulate} micro-batches each: lower one of them, or make "
            "batch_size larger"
        )
    order = np.empty(0, np.int64)
    for step in steps:
        epoch, within = divmod(step, an_epoch)
        if within == 0 or not len(order):
            order = np.random.default_rng([settings.seed, epoch]).permutation(examples)
        rows = order[within * settings.batch_size : (within + 1) * settings.batch_size]
        mine = np.array_split(rows[place::count], settings.accumulate)
        made = []
        for part in mine:
            # A generator of their own for each: what is drawn for a step is drawn alike.
            rng = np.random.default_rng([settings.seed, epoch, within])
            try:
                batch = {name: value.to(device) for name, value in task.batch(part, rng).items()}
            except OSError:
                raise  # of a file or a connection: new workers may well succeed
            except Exception as error:
                raise TrainError(f"{type(task).__name__}.batch failed: {error!r}") from error
            made.append(MicroBatch(batch, len(part) * count / len(rows)))
        yield made


def _ahead(made: Iterator[list[MicroBatch]], depth: int) -> Iterator[list[MicroBatch]]:
    """The same, made in a thread up to `depth` steps ahead."""
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
            for batches in made:
                put(batches)
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
