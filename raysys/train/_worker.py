"""The worker of a training run, inside its process group."""

from __future__ import annotations

import contextlib
import logging
import resource
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import psutil
import torch
import torch.distributed as dist

from raysys.errors import TrainError
from raysys.telemetry import metrics
from raysys.train import _checkpoint
from raysys.train._checkpoint import CheckpointWriter, TrainingProgress
from raysys.train._failures import certain_errors, task_errors
from raysys.train._loader import steps_per_epoch
from raysys.train._loop import TrainCallback, run_steps, total_steps
from raysys.train._module import (
    aliases_of,
    built_module,
    check_extra_state,
    load_extra_state,
    module_with,
)
from raysys.train._module_file import write_module
from raysys.train._task import prepared_examples
from raysys.train.strategies._registry import make_strategy

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.train._loop import Point
    from raysys.train._run_state import RunState
    from raysys.train._settings import TrainSettings
    from raysys.train._task import EpochMetrics, StateDict, TrainingTask
    from raysys.train.strategies._strategy import Strategy

_MAX_POINTS = 2000
_AGREEMENT_S = 3.0  # for the other workers to meet the same error
_log = logging.getLogger("raysys.train")


def run_worker(
    task: TrainingTask, tables: Mapping[str, Table], settings: TrainSettings, state: RunState,
    submission: str, device: str,
) -> None:  # fmt: skip
    """Train as one worker of a process group, from the newest checkpoint to the end.

    An error that would recur is stored for the driver, which raises it. If all workers meet it,
    they end without an error, so that Ray Train does not replace them; else one raises, since its
    peers wait for it, and the next group ends at once.
    """
    if state.failure(submission):
        return
    try:
        with certain_errors(type(task).__name__), _limited_memory(settings.memory_limit_bytes):
            _train(task, tables, settings, state, submission, device)
    except TrainError as error:
        rank, world = dist.get_rank(), dist.get_world_size()
        state.write_failure(submission, rank, error)
        end = time.monotonic() + _AGREEMENT_S
        while state.failures(submission) < world:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _train(
    task: TrainingTask, tables: Mapping[str, Table], settings: TrainSettings, state: RunState,
    submission: str, device: str,
) -> None:  # fmt: skip
    rank, world = dist.get_rank(), dist.get_world_size()
    if settings.threads_per_worker:
        torch.set_num_threads(settings.threads_per_worker)
    torch.use_deterministic_algorithms(settings.deterministic)
    examples = prepared_examples(task, tables)
    module = built_module(task, settings.seed, examples)
    check_extra_state(module)
    aliases = aliases_of(module)
    if rank == 0:
        write_module(state, module)
    strategy = make_strategy(task, module, settings, device, examples)
    del module
    # Rank 0 chooses: another worker may see one that was completed a moment later.
    agreed = [(secrets.token_hex(4), _checkpoint.newest(state.storage, state.folder))]
    dist.broadcast_object_list(agreed)
    attempt, newest = agreed[0]
    progress = TrainingProgress(examples=examples)
    if newest:
        with _checkpoint.opened(state.storage, state.folder, newest) as saved:
            progress = saved.progress
            if progress.examples != examples:
                raise TrainError(
                    f"run {state.name!r} was started with {progress.examples} training examples, "
                    f"now there are {examples}: give another name, or the same tables"
                )
            strategy.load_tensor_states(saved.read, progress.step)
            load_extra_state(strategy.inner, saved.extra_state)
    if rank == 0:
        metrics.TRAIN_STARTS.inc(1, {"run": state.name})
        _log.info(
            "%d workers start at step %d; lost ones are replaced up to max_failures=%d times",
            world, progress.step, settings.max_failures, extra={"training": state.name},
        )  # fmt: skip
    checkpoints = CheckpointWriter(
        state.storage, state.folder, attempt=attempt, rank=rank, world=world
    )
    callback = _WorkerCallback(
        task, strategy, checkpoints, state, submission,
        checkpoint_steps=settings.checkpoint_steps or steps_per_epoch(examples, settings),
        steps=total_steps(examples, settings),
    )  # fmt: skip
    run_steps(task, settings, strategy, examples, progress, callback, rank=rank, device=device)
    checkpoints.wait()
    dist.barrier()
    if rank == 0:
        state.write("result", {
            "history": progress.history, "examples": examples, "workers": world,
            "aliases": aliases,
        })  # fmt: skip


@dataclass
class _WorkerCallback(TrainCallback):
    """Writes checkpoints, and on rank 0 the progress for the driver."""

    task: TrainingTask
    strategy: Strategy
    checkpoints: CheckpointWriter
    state: RunState
    submission: str
    checkpoint_steps: int
    steps: int
    points: list[dict[str, float]] = field(default_factory=list)
    epochs_written: int = 0

    def on_epoch_end(self, epoch: EpochMetrics, parameters: StateDict) -> None:
        # on_step_end follows, with the epoch in the history.
        epoch["workers"] = float(dist.get_world_size())
        if parameters and epoch["step"] == self.steps:
            with task_errors(self.task, "predictions"), torch.no_grad():
                rows = self.task.predictions(module_with(self.task, parameters))
            if rows is not None:
                self.state.write_rows("predictions", rows)

    def on_step_end(self, progress: TrainingProgress, loss: float, point: Point | None) -> None:
        rank = dist.get_rank()
        if rank == 0:
            if point:
                self.points.append({"step": progress.step, **point})
                labels = {"run": self.state.name}
                metrics.TRAIN_STEPS.set(self.steps, labels)
                metrics.TRAIN_STEP.set(progress.step, labels)
                metrics.TRAIN_LOSS.set(point["loss"], labels)
                metrics.TRAIN_SAMPLES_PER_SECOND.set(point["samples_per_s"], labels)
            if point or len(progress.history) > self.epochs_written:
                self.epochs_written = len(progress.history)
                self.state.write("progress", {
                    **asdict(progress), "steps": self.steps, "workers": dist.get_world_size(),
                    "points": self.points[-_MAX_POINTS:],
                })  # fmt: skip
        if progress.step % self.checkpoint_steps == 0 or progress.step == self.steps:
            if rank == 0:
                self._check_submission()
            self.checkpoints.save(self.strategy, progress)

    def _check_submission(self) -> None:
        """Yield to a later call, as when the driver of this one is cut off but alive."""
        plan = self.state.read("plan")
        if plan and plan["submission"] != self.submission:
            raise TrainError(
                f"another call has taken over run {self.state.name!r}: wait for that one, or "
                "give this one another name"
            )


@contextlib.contextmanager
def _limited_memory(limit_bytes: int | None) -> Iterator[None]:
    """Limit the memory of this process, including what it uses already."""
    if limit_bytes is None:
        yield
        return
    process = psutil.Process()
    usage = process.memory_info()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    # The limit counts reserved memory, of which a worker of Ray has much that it never touches.
    limit = usage.data + max(0, limit_bytes - usage.rss)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise TrainError(
            f"a worker needs more than memory_limit_bytes={limit_bytes} (it used "
            f"{process.memory_info().rss} when it asked for more: {str(error).splitlines()[0]}): "
            "raysys.train.plan lists strategies that need less"
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
