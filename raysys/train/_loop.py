"""The training loop: the same steps for one process and for many."""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

import torch

from raysys.errors import TrainError
from raysys.telemetry import ProcessMeter
from raysys.train._divergence import suspect
from raysys.train._learning_rate import learning_rate_at, scaled_learning_rate
from raysys.train._loader import micro_batches, steps_per_epoch
from raysys.train.strategies._base import NotFiniteError, Replica, tensors_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raysys.train._checkpoint import Progress
    from raysys.train._settings import TrainSettings
    from raysys.train._task import Epoch, Parameters, TrainingTask

_NORMS = 50  # of the last steps, whose median tells what is usual
_NORMS_NEEDED = 10
_SAMPLE_S = 1.0


class Watcher(Protocol):
    """Told by the loop what happens, in every worker alike."""

    def on_epoch(self, measured: Epoch, parameters: Parameters) -> None:
        """An epoch has ended, the run's last one perhaps earlier."""

    def on_step(self, progress: Progress, point: Mapping[str, float] | None) -> None:
        """A step was taken, and all that belongs to it; now and then with a point of the curves."""


def run_steps(
    task: TrainingTask,
    settings: TrainSettings,
    replica: Replica,
    examples: int,
    progress: Progress,
    watcher: Watcher,
    *,
    rank: int = 0,
    device: str = "cpu",
) -> None:
    """Train from `progress.step` to the end.

    Raises:
        TrainError: The loss or the gradient is not finite or explodes, or the task fails.
    """
    torch.use_deterministic_algorithms(settings.deterministic)
    an_epoch = steps_per_epoch(examples, settings)
    steps = total_steps(examples, settings)
    peak = scaled_learning_rate(
        settings.learning_rate, settings.batch_size, settings.base_batch_size, settings.optimizer
    )
    made = micro_batches(
        task,
        settings,
        examples,
        share=replica.share,
        steps=range(progress.step, steps),
        device=device,
    )
    norms: deque[float] = deque(maxlen=_NORMS)
    points = _Points(settings.batch_size)
    replica.module.train()
    started, first = time.perf_counter(), progress.step
    for micro in made:
        step = progress.step
        # By the step, so that dropout is the same in a run that goes on.
        torch.manual_seed((settings.seed * 1_000_003 + step) * 1009 + rank)
        rate = learning_rate_at(
            step, steps=steps, peak=peak, warmup=settings.warmup, kind=settings.schedule
        )
        if settings.explosion and len(norms) >= _NORMS_NEEDED:
            replica.norm_limit = settings.explosion * statistics.median(norms)
        try:
            loss = replica.step(micro, rate)
        except NotFiniteError as error:
            raise suspect(replica, micro, step + 1, str(error)) from None
        if replica.norm is not None:
            norms.append(replica.norm)
        progress.step += 1
        progress.loss_sum += loss
        point = points.add(loss, rate, replica.norm)
        if progress.step % an_epoch == 0 or progress.step == steps:
            within = (progress.step - 1) % an_epoch + 1
            now = time.perf_counter()
            taken = progress.step - first
            measured: Epoch = {
                "epoch": float(len(progress.history) + 1),
                "step": float(progress.step),
                "train_loss": progress.loss_sum / within,
                "last_loss": loss,
                "samples_per_s": taken * min(settings.batch_size, examples) / (now - started),
                "epoch_s": now - started,
            }
            parameters = replica.full_parameters() if settings.evaluate else {}
            if rank == 0 and settings.evaluate:
                measured |= evaluate(task, parameters)
            progress.history.append(measured)
            progress.loss_sum = 0.0
            watcher.on_epoch(measured, parameters)
            replica.module.train()
            started, first = time.perf_counter(), progress.step
        watcher.on_step(progress, point)


def total_steps(examples: int, settings: TrainSettings) -> int:
    """Optimizer steps of a whole run."""
    return min(settings.epochs * steps_per_epoch(examples, settings), settings.max_steps or 1 << 62)


def evaluate(task: TrainingTask, parameters: Parameters) -> dict[str, float]:
    """The task's measurements of a plain module with these parameters."""
    with torch.no_grad():
        try:
            return task.evaluate(rebuilt(task, parameters))
        except Exception as error:
            raise TrainError(f"{type(task).__name__}.evaluate failed: {error!r}") from error


def rebuilt(task: TrainingTask, parameters: Parameters) -> torch.nn.Module:
    """A plain module with these parameters, in evaluation mode."""
    module = task.build()
    with torch.no_grad():
        for name, tensor in tensors_of(module).items():
            tensor.copy_(parameters[name])
    return module.eval()


class _Points:
    """Points of the curves, one a second at most: means since the last."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size, self._losses, self._since = batch_size, list[float](), time.perf_counter()
        self._meter = ProcessMeter()

    def add(self, loss: float, rate: float, norm: float | None) -> dict[str, float] | None:
        self._losses.append(loss)
        now = time.perf_counter()
        if now - self._since < _SAMPLE_S:
            return None
        point = {
            "loss": statistics.fmean(self._losses),
            "learning_rate": rate,
            "samples_per_s": len(self._losses) * self._batch_size / (now - self._since),
            **({} if norm is None else {"gradient_norm": norm}),
            **self._meter.read(),
        }
        self._losses, self._since = [], now
        return point
