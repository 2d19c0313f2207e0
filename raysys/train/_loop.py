"""The training loop: the same steps for one process and for many."""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import TYPE_CHECKING

import torch

from raysys.telemetry import ProcessMeter
from raysys.train._divergence import divergence_error
from raysys.train._failures import certain_errors, task_errors
from raysys.train._learning_rate import learning_rate_at
from raysys.train._loader import micro_batches, steps_per_epoch
from raysys.train._module import module_with
from raysys.train.strategies._strategy import NotFiniteError, Strategy

if TYPE_CHECKING:
    from raysys.train._checkpoint import TrainingProgress
    from raysys.train._settings import TrainSettings
    from raysys.train._task import EpochMetrics, StateDict, TrainingTask

# Values of the curves at a step, by name.
Point = dict[str, float]

_NORMS = 50  # recent gradient norms, for their median
_MIN_NORMS = 10
_SAMPLE_S = 1.0


class TrainCallback:
    """Hooks of the loop, called in every worker alike; they do nothing by default."""

    def on_epoch_end(self, metrics: EpochMetrics, parameters: StateDict) -> None:
        """An epoch has ended; the run's last one may be shorter."""

    def on_step_end(self, progress: TrainingProgress, loss: float, point: Point | None) -> None:
        """A step was taken; about once a second with a point of the curves."""


def run_steps(
    task: TrainingTask,
    settings: TrainSettings,
    strategy: Strategy,
    examples: int,
    progress: TrainingProgress,
    callback: TrainCallback,
    *,
    rank: int = 0,
    device: str = "cpu",
) -> None:
    """Train from `progress.step` to the end.

    Raises:
        TrainError: The loss or the gradient is not finite or too large, or the task fails.
    """
    torch.use_deterministic_algorithms(settings.deterministic)
    epoch_steps = steps_per_epoch(examples, settings)
    steps = total_steps(examples, settings)
    batches = micro_batches(
        task, settings, examples,
        data_shard=strategy.data_shard, steps=range(progress.step, steps), device=device,
    )  # fmt: skip
    norms: deque[float] = deque(maxlen=_NORMS)
    points = _CurvePoints(settings.batch_size)
    strategy.module.train()
    started, first = time.perf_counter(), progress.step
    for micro in batches:
        step = progress.step
        # By the step, so that dropout is the same in a resumed run.
        torch.manual_seed((settings.seed * 1_000_003 + step) * 1009 + rank)
        rate = learning_rate_at(step, steps, settings)
        if settings.max_grad_norm_ratio and len(norms) >= _MIN_NORMS:
            strategy.grad_norm_limit = settings.max_grad_norm_ratio * statistics.median(norms)
        with certain_errors(f"step {step + 1} of {type(task).__name__}"):
            try:
                loss = strategy.step(micro, rate)
            except NotFiniteError as error:
                raise divergence_error(strategy, micro, step + 1, str(error)) from None
        if strategy.grad_norm is not None:
            norms.append(strategy.grad_norm)
        progress.step += 1
        progress.loss_sum += loss
        point = points.add(loss, rate, strategy.grad_norm)
        if progress.step % epoch_steps == 0 or progress.step == steps:
            epoch_s = time.perf_counter() - started
            samples = (progress.step - first) * min(settings.batch_size, examples)
            metrics: EpochMetrics = {
                "epoch": float(len(progress.history) + 1),
                "step": float(progress.step),
                "train_loss": progress.loss_sum / ((progress.step - 1) % epoch_steps + 1),
                "last_loss": loss,
                "samples_per_s": samples / epoch_s,
                "epoch_s": epoch_s,
            }
            parameters = strategy.full_state_dict() if settings.evaluate else {}
            if rank == 0 and settings.evaluate:
                metrics |= evaluate(task, parameters)
            progress.history.append(metrics)
            progress.loss_sum = 0.0
            callback.on_epoch_end(metrics, parameters)
            strategy.module.train()
            started, first = time.perf_counter(), progress.step
        callback.on_step_end(progress, loss, point)


def total_steps(examples: int, settings: TrainSettings) -> int:
    """Optimizer steps of the run."""
    return min(settings.epochs * steps_per_epoch(examples, settings), settings.max_steps or 1 << 62)


def evaluate(task: TrainingTask, parameters: StateDict) -> dict[str, float]:
    """The task's metrics of a plain module with these parameters."""
    with torch.no_grad(), task_errors(task, "evaluate"):
        metrics = task.evaluate(module_with(task, parameters))
        return {name: float(value) for name, value in metrics.items()}


class _CurvePoints:
    """Points of the curves, at most one a second: means since the last."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size, self._losses, self._since = batch_size, list[float](), time.perf_counter()
        self._meter = ProcessMeter()

    def add(self, loss: float, rate: float, grad_norm: float | None) -> Point | None:
        self._losses.append(loss)
        now = time.perf_counter()
        if now - self._since < _SAMPLE_S:
            return None
        point = {
            "loss": statistics.fmean(self._losses),
            "learning_rate": rate,
            "samples_per_s": len(self._losses) * self._batch_size / (now - self._since),
            **({} if grad_norm is None else {"gradient_norm": grad_norm}),
            **self._meter.read(),
        }
        self._losses, self._since = [], now
        return point
