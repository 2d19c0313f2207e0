"""The training loop: the same steps for one process and for many."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pyarrow as pa
    import torch

    from raysys.train._task import TrainingTask

StrategyName = Literal["ddp", "zero1", "zero2", "zero3"]
# What one pass over the training examples measured, `epoch` among it.
Epoch = dict[str, float]
# A module's `state_dict`, on the CPU.
Parameters = dict[str, "torch.Tensor"]


class TrainSettings(BaseModel):
    """How a task is trained.

    AdamW (Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019) with a linear
    warm-up and cosine decay of the learning rate.
    """

    strategy: StrategyName = "ddp"
    workers: int = Field(2, ge=1)
    epochs: int = Field(6, ge=1)
    batch_size: int = Field(512, ge=1, description="examples a step, over all workers")
    learning_rate: float = Field(4e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    seed: int = 0
    max_failures: int = Field(3, ge=0, description="worker failures before the run gives up")


class Replica(Protocol):
    """A module and its optimizer in one worker, spread as a strategy says."""

    module: torch.nn.Module

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """Take one optimizer step; return this worker's loss."""

    def full_parameters(self) -> Parameters:
        """All parameters, whole, on the CPU. Every worker must call it."""


class Plain:
    """One process, no communication."""

    def __init__(self, module: torch.nn.Module, settings: TrainSettings, steps: int) -> None:
        self.module = module
        self.optimizer, self.schedule = optimizer_and_schedule(module, settings, steps)

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        loss = self.module(**batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def full_parameters(self) -> Parameters:
        return {name: value.detach().cpu() for name, value in self.module.state_dict().items()}


def optimizer_and_schedule(
    module: torch.nn.Module, settings: TrainSettings, steps: int
) -> tuple[Any, Any]:
    """AdamW and its learning-rate schedule over `steps` optimizer steps."""
    import torch

    optimizer = torch.optim.AdamW(
        module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    warmup = max(1, round(settings.warmup * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def steps_per_epoch(examples: int, settings: TrainSettings) -> int:
    """Whole global batches in an epoch; the incomplete rest waits for the next shuffle."""
    return max(1, examples // settings.batch_size)


def run_epochs(
    task: TrainingTask,
    settings: TrainSettings,
    replica: Replica,
    examples: int,
    *,
    on_epoch: Callable[[Epoch, Parameters], None],
    first_epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
) -> None:
    """Train from `first_epoch` to the end, reporting each epoch with the full parameters.

    Every random draw is a function of (seed, epoch, step), so a run that resumes at an epoch
    takes the steps that an undisturbed one would have taken.
    """
    import torch

    steps = steps_per_epoch(examples, settings)
    for epoch in range(first_epoch, settings.epochs):
        started = time.perf_counter()
        torch.manual_seed(settings.seed * 1_000_003 + epoch * 1009 + rank)
        order = np.random.default_rng([settings.seed, epoch]).permutation(examples)
        replica.module.train()
        total = 0.0
        for step in range(steps):
            rng = np.random.default_rng([settings.seed, epoch, step])
            rows = order[step * settings.batch_size : (step + 1) * settings.batch_size]
            # Equal shares keep the mean of the workers' means the mean of the global batch.
            rows = rows[rank : len(rows) - len(rows) % world : world]
            batch = {name: value.to(device) for name, value in task.batch(rows, rng).items()}
            total += replica.step(batch)
        parameters = replica.full_parameters()
        measured = {
            "epoch": epoch + 1,
            "train_loss": total / steps,
            "epoch_s": time.perf_counter() - started,
        }
        if rank == 0:
            measured |= evaluate(task, parameters)
        on_epoch(measured, parameters)


def evaluate(task: TrainingTask, parameters: Parameters) -> dict[str, float]:
    """The task's measurements of a plain module with these parameters."""
    import torch

    module = task.build()
    module.load_state_dict(parameters)
    with torch.no_grad():
        return task.evaluate(module.eval())


def train_in_process(
    task: TrainingTask,
    tables: Mapping[str, pa.Table],
    settings: TrainSettings,
    on_epoch: Callable[[Epoch, Parameters], None],
) -> None:
    """Train in this process alone, as a search's trial does. `strategy` and `workers` rest."""
    import torch

    examples = task.prepare(tables)
    torch.manual_seed(settings.seed)
    steps = settings.epochs * steps_per_epoch(examples, settings)
    run_epochs(task, settings, Plain(task.build(), settings, steps), examples, on_epoch=on_epoch)
