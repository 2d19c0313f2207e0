"""What one worker of a training run does."""

from __future__ import annotations

import contextlib
import logging
import resource
import secrets
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
import torch.distributed as dist

from raysys.errors import TrainError
from raysys.train import _checkpoint, _metrics
from raysys.train._checkpoint import Checkpoints, Progress
from raysys.train._loader import steps_per_epoch
from raysys.train._loop import rebuilt, run_steps, total_steps
from raysys.train.strategies._base import aliases_of
from raysys.train.strategies._registry import make_replica

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from raysys.data import Table
    from raysys.train._run_state import Record
    from raysys.train._settings import TrainSettings
    from raysys.train._task import Batch, Epoch, Parameters, TrainingTask
    from raysys.train.strategies._base import Replica

_POINTS_KEPT = 2000
_log = logging.getLogger("raysys.train")


def work(
    task: TrainingTask,
    tables: Mapping[str, Table],
    settings: TrainSettings,
    record: Record,
    submission: str,
    device: str,
) -> None:
    """Train as one of the workers of a process group, from the newest checkpoint to the end.

    What would only fail again is written down and raised; a group that is started after it ends
    at once, and the driver says it.
    """
    if record.failure(submission):
        return
    try:
        with _limited(settings.memory_bytes):
            _train(task, tables, settings, record, submission, device)
    except TrainError as error:
        record.write_failure(submission, error)
        raise


def _train(
    task: TrainingTask,
    tables: Mapping[str, Table],
    settings: TrainSettings,
    record: Record,
    submission: str,
    device: str,
) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(settings.deterministic)
    with _blamed(task, "prepare"):
        examples = task.prepare({key: table.arrow() for key, table in tables.items()})
    if examples < 1:
        raise TrainError(f"{type(task).__name__}.prepare found no training examples")
    torch.manual_seed(settings.seed)
    with _blamed(task, "build"):
        module = task.build()
    aliases = aliases_of(module)

    def example(count: int) -> Batch:
        with _blamed(task, "batch"):
            return task.batch(np.arange(count) % examples, np.random.default_rng(0))

    replica = make_replica(module, settings, device, example)
    del module
    # Of rank 0: another may find one that was completed a moment later.
    agreed = [(secrets.token_hex(4), _checkpoint.newest(record.storage, record.folder))]
    dist.broadcast_object_list(agreed)
    attempt, found = agreed[0]
    progress = Progress(examples=examples)
    if found:
        with _checkpoint.opened(record.storage, record.folder, found) as saved:
            progress = saved.progress
            if progress.examples != examples:
                raise TrainError(
                    f"run {record.name!r} was started with {progress.examples} training examples, "
                    f"now there are {examples}: give another name, or the tables that it had"
                )
            replica.load(saved.read, progress.step)
    if rank == 0:
        _metrics.started(record.name)
        _log.info(
            "%d workers start at step %d, in place of those that are lost up to max_failures=%d",
            world, progress.step, settings.max_failures, extra={"training": record.name},
        )  # fmt: skip
    checkpoints = Checkpoints(
        record.storage, record.folder, attempt=attempt, rank=rank, world=world
    )
    reporter = _Reporter(task, replica, checkpoints, settings, record, submission, examples)
    run_steps(task, settings, replica, examples, progress, reporter, rank=rank, device=device)
    checkpoints.wait()
    dist.barrier()
    if rank == 0:
        record.write("result", {
            "history": progress.history, "examples": examples, "workers": world,
            "aliases": aliases,
        })  # fmt: skip


class _Reporter:
    """Writes checkpoints, and on rank 0 what the driver says and tracks."""

    def __init__(
        self,
        task: TrainingTask,
        replica: Replica,
        checkpoints: Checkpoints,
        settings: TrainSettings,
        record: Record,
        submission: str,
        examples: int,
    ) -> None:
        self._task, self._replica, self._checkpoints = task, replica, checkpoints
        self._record, self._submission = record, submission
        self._rank = dist.get_rank()
        self._every = settings.checkpoint_steps or steps_per_epoch(examples, settings)
        self._steps = total_steps(examples, settings)
        self._points: list[dict[str, float]] = []
        self._told = 0

    def on_epoch(self, measured: Epoch, parameters: Parameters) -> None:
        # on_step follows, with the epoch in the history.
        if parameters and measured["step"] == self._steps:
            with _blamed(self._task, "predictions"), torch.no_grad():
                rows = self._task.predictions(rebuilt(self._task, parameters))
            if rows is not None:
                self._record.write_rows("predictions", rows)

    def on_step(self, progress: Progress, point: Mapping[str, float] | None) -> None:
        if self._rank == 0:
            if point:
                self._points.append({"step": progress.step, **point})
                _metrics.point(self._record.name, self._steps, self._points[-1])
            if point or len(progress.history) > self._told:
                self._told = len(progress.history)
                self._record.write("progress", {
                    **asdict(progress), "steps": self._steps,
                    "points": self._points[-_POINTS_KEPT:],
                })  # fmt: skip
        if progress.step % self._every == 0 or progress.step == self._steps:
            if self._rank == 0:
                self._check_alone()
            self._checkpoints.save(self._replica, progress)

    def _check_alone(self) -> None:
        """Give way to a later call, as when the driver of this one is cut off but lives."""
        plan = self._record.read("plan")
        if plan and plan["submission"] != self._submission:
            raise TrainError(
                f"another call has taken over run {self._record.name!r}: wait for that one, or "
                "give this one another name"
            )


@contextlib.contextmanager
def _blamed(task: TrainingTask, method: str) -> Iterator[None]:
    """An error of the task's own, which no new group of workers would cure."""
    try:
        yield
    except Exception as error:
        raise TrainError(f"{type(task).__name__}.{method} failed: {error!r}") from error


@contextlib.contextmanager
def _limited(memory_bytes: int | None) -> Iterator[None]:
    """Let this process hold no more memory than that, what it holds already included."""
    if memory_bytes is None:
        yield
        return
    process = psutil.Process()
    held = process.memory_info()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    # The limit counts what is reserved, of which a worker of Ray has much that it never touches.
    limit = held.data + max(0, memory_bytes - held.rss)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise TrainError(
            f"a worker needs more than memory_bytes={memory_bytes} (it held "
            f"{process.memory_info().rss} when it was refused more: {str(error).splitlines()[0]}): "
            "raysys.train.plan says which strategies need less, and with how many workers"
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
