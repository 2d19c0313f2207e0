"""Trainings in one process: a search's trial, one batch by heart, and the learning curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import ray

from raysys import cluster
from raysys.arguments import checked
from raysys.train._task import TrainingTask

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn

    from raysys.data import Table
    from raysys.train._settings import TrainSettings
    from raysys.train._task import Batch, EpochMetrics, StateDict


@checked
def train_in_process(
    task: TrainingTask,
    tables: Mapping[str, pa.Table],
    settings: TrainSettings,
    on_epoch_end: Callable[[EpochMetrics, StateDict], None],
) -> None:
    """Train in this process alone; strategy and number of workers are ignored.

    Args:
        task: Task to train.
        tables: Tables for the task's `prepare`.
        settings: Epochs, batch size, optimizer.
        on_epoch_end: Called with the metrics and the parameters after each epoch.

    Raises:
        TrainError: The loss or the gradient is not finite or too large.
    """
    from raysys.train._checkpoint import TrainingProgress
    from raysys.train._loop import TrainCallback, run_steps
    from raysys.train._module import built_module
    from raysys.train.strategies._strategy import SingleDeviceStrategy

    class Callback(TrainCallback):
        def on_epoch_end(self, metrics: EpochMetrics, parameters: StateDict) -> None:
            on_epoch_end(metrics, parameters)

    examples = task.prepare(tables)
    module = built_module(task, settings.seed, examples)
    strategy = SingleDeviceStrategy(module, settings, "cpu")
    strategy.start()
    run_steps(task, settings, strategy, examples, TrainingProgress(), Callback())


@dataclass(frozen=True)
class OverfitResult:
    """Result of training on one batch.

    Attributes:
        losses: Loss after each step, the initial loss first.
        passed: Whether the last loss is low enough.
    """

    losses: list[float]
    passed: bool

    @property
    def _course(self) -> str:
        first, last = self.losses[0], self.losses[-1]
        return f"loss {first:.4g} -> {last:.4g} in {len(self.losses) - 1} steps"

    def __repr__(self) -> str:
        return f"OverfitResult({'passed' if self.passed else 'failed'}, {self._course})"

    def __str__(self) -> str:
        verdict = "the module and its loss can learn" if self.passed else (
            "it does not learn one batch by heart: check labels, loss, learning rate and whether "
            "gradients reach all layers"
        )  # fmt: skip
        return f"{self._course} on one batch: {verdict}"


@checked
def overfit_one_batch(
    task: TrainingTask,
    tables: Mapping[str, Table],
    settings: TrainSettings,
    *,
    batch_size: int = 32,
    steps: int = 200,
    max_loss_ratio: float = 0.1,
) -> OverfitResult:
    """Check that a module can learn a few examples by heart; one that cannot has a fault.

    Trains in a Ray task, with the settings' optimizer and learning rate, held constant and without
    weight decay; dropout and the like are off.

    Args:
        task: Task to train.
        tables: Tables for the task's `prepare`.
        settings: Optimizer, learning rate, seed.
        batch_size: Examples in the batch.
        steps: Steps to take.
        max_loss_ratio: Share of the initial loss at which the check passes.

    Raises:
        TrainError: The loss is not finite.
    """
    cluster.require("overfitting one batch", cpus=1)
    remote = ray.remote(_overfit).options(name="overfit one batch")
    losses = ray.get(remote.remote(task, dict(tables), settings, batch_size, steps))
    return OverfitResult(losses, bool(losses[-1] <= max_loss_ratio * losses[0]))


def _overfit(
    task: TrainingTask, tables: dict[str, Table], settings: TrainSettings, batch_size: int,
    steps: int,
) -> list[float]:  # fmt: skip
    from raysys.train._divergence import divergence_error
    from raysys.train._module import built_module
    from raysys.train.strategies._strategy import MicroBatch, NotFiniteError, SingleDeviceStrategy

    examples = task.prepare({name: table.to_arrow() for name, table in tables.items()})
    settings = settings.model_copy(update={"weight_decay": 0.0})
    strategy = SingleDeviceStrategy(built_module(task, settings.seed, examples), settings, "cpu")
    strategy.start()
    strategy.module.eval()
    rng = np.random.default_rng(settings.seed)
    rows = rng.choice(examples, size=min(batch_size, examples), replace=False)
    micro = [MicroBatch(task.batch(rows, rng), 1.0)]
    losses = []
    for step in range(steps + 1):
        try:
            losses.append(strategy.step(micro, settings.learning_rate))
        except NotFiniteError as error:
            raise divergence_error(strategy, micro, step + 1, str(error)) from None
    return losses


@dataclass(frozen=True)
class LearningCurvePoint:
    """Number of training examples, and the metrics of the last epoch."""

    examples: int
    metrics: dict[str, float]


@checked
def learning_curve(
    task: TrainingTask,
    tables: Mapping[str, Table],
    settings: TrainSettings,
    *,
    train_sizes: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
) -> list[LearningCurvePoint]:
    """Train on growing shares of the examples: would more data help, or another model?

    Each share contains the smaller ones, and is trained for as many steps as all examples would
    be, in a Ray task of its own.

    Args:
        task: Task to train.
        tables: Tables for the task's `prepare`.
        settings: Settings of the full training; strategy and workers are ignored.
        train_sizes: Shares of the examples, between 0 and 1.
    """
    cluster.require("a learning curve", cpus=1)
    remote = ray.remote(_train_share).options(name="learning curve")
    return ray.get([
        remote.remote(task, dict(tables), settings, share) for share in sorted(train_sizes)
    ])  # fmt: skip


class _SubsetTask(TrainingTask):
    """A task on a share of its examples."""

    def __init__(self, inner: TrainingTask, share: float, seed: int) -> None:
        self._inner, self._share, self._seed = inner, share, seed

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        self.all_examples = self._inner.prepare(tables)
        size = max(1, round(self._share * self.all_examples))
        self._rows = np.random.default_rng(self._seed).permutation(self.all_examples)[:size]
        return size

    def build(self) -> nn.Module:
        return self._inner.build()

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        return self._inner.batch(self._rows[rows], rng)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        return self._inner.evaluate(module)


def _train_share(
    task: TrainingTask, tables: dict[str, Table], settings: TrainSettings, share: float
) -> LearningCurvePoint:
    from raysys.train._loader import steps_per_epoch
    from raysys.train._loop import total_steps

    subset = _SubsetTask(task, share, settings.seed)
    arrays = {name: table.to_arrow() for name, table in tables.items()}
    examples = subset.prepare(arrays)
    steps = total_steps(subset.all_examples, settings)
    size = min(settings.batch_size, examples)
    settings = settings.model_copy(update={"batch_size": size, "max_steps": steps})
    epochs = -(-steps // steps_per_epoch(examples, settings))
    settings = settings.model_copy(update={"epochs": epochs})
    history: list[dict[str, float]] = []
    train_in_process(subset, arrays, settings, lambda metrics, _: history.append(metrics))
    return LearningCurvePoint(examples, history[-1])
