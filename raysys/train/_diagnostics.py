"""Small trainings that tell what is wrong with a large one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from raysys import cluster
from raysys.train._in_process import train_in_process
from raysys.train._task import TrainingTask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    import torch

    from raysys.data import Table
    from raysys.train._settings import TrainSettings


@dataclass(frozen=True)
class Overfit:
    """What became of one batch.

    Attributes:
        losses: After each step, the first before any.
        passed: Whether the last is at most the asked-for share of the first.
    """

    losses: list[float]
    passed: bool

    def __str__(self) -> str:
        verdict = (
            "the module and its loss can learn"
            if self.passed
            else "it does not learn one batch by heart: look at labels, loss, learning rate and "
            "at what cuts gradients off"
        )
        return (
            f"loss {self.losses[0]:.4g} -> {self.losses[-1]:.4g} in {len(self.losses) - 1} steps "
            f"on one batch: {verdict}"
        )


def overfit_one_batch(
    task: TrainingTask,
    tables: Mapping[str, Table],
    settings: TrainSettings,
    *,
    examples: int = 32,
    steps: int = 200,
    to: float = 0.1,
) -> Overfit:
    """Check that a module can learn a few examples by heart; one that cannot has a fault.

    In a task, with the settings' optimizer and learning rate, held constant and without decay;
    dropout and the like are off.

    Args:
        task: What is trained.
        tables: Given to its `prepare`.
        settings: Optimizer, learning rate, seed.
        examples: In the batch.
        steps: To take.
        to: The share of the first loss that must be reached.

    Raises:
        TrainError: The loss is not finite.
    """
    cluster.require("overfitting one batch", cpus=1)
    remote = ray.remote(_overfit).options(name="overfit one batch")
    losses = ray.get(remote.remote(task, dict(tables), settings, examples, steps))
    return Overfit(losses, bool(losses[-1] <= to * losses[0]))


def _overfit(
    task: TrainingTask,
    tables: dict[str, Table],
    settings: TrainSettings,
    examples: int,
    steps: int,
) -> list[float]:
    import torch

    from raysys.train._divergence import suspect
    from raysys.train.strategies._base import MicroBatch, NotFiniteError, Plain

    known = task.prepare({name: table.arrow() for name, table in tables.items()})
    torch.manual_seed(settings.seed)
    settings = settings.model_copy(update={"weight_decay": 0.0})
    replica = Plain(task.build(), settings, "cpu")
    replica.start()
    replica.module.eval()
    rng = np.random.default_rng(settings.seed)
    rows = rng.choice(known, size=min(examples, known), replace=False)
    micro = [MicroBatch(task.batch(rows, rng), 1.0)]
    losses = []
    for step in range(steps + 1):
        try:
            losses.append(replica.step(micro, settings.learning_rate))
        except NotFiniteError as error:
            raise suspect(replica, micro, step + 1, str(error)) from None
    return losses


@dataclass(frozen=True)
class CurvePoint:
    """What a share of the examples came to: their number, and the last epoch's measurements."""

    examples: int
    measured: dict[str, float]


def learning_curve(
    task: TrainingTask,
    tables: Mapping[str, Table],
    settings: TrainSettings,
    *,
    shares: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
) -> list[CurvePoint]:
    """Train on growing shares of the examples: would more data help, or another model?

    Each share holds the smaller ones, and is trained for as many steps as the whole would be, in
    a task of its own.

    Args:
        task: What is trained.
        tables: Given to its `prepare`.
        settings: As of the whole training; strategy and workers rest.
        shares: Of the examples, between 0 and 1.
    """
    cluster.require("a learning curve", cpus=1)
    remote = ray.remote(_train_share).options(name="learning curve")
    return ray.get([remote.remote(task, dict(tables), settings, share) for share in sorted(shares)])


class _Share(TrainingTask):
    """Another task on some of its examples."""

    def __init__(self, inner: TrainingTask, share: float, seed: int) -> None:
        self._inner, self._share, self._seed = inner, share, seed

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        self.all = self._inner.prepare(tables)
        kept = max(1, round(self._share * self.all))
        self._rows = np.random.default_rng(self._seed).permutation(self.all)[:kept]
        return kept

    def build(self) -> torch.nn.Module:
        return self._inner.build()

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return self._inner.batch(self._rows[rows], rng)

    def evaluate(self, module: torch.nn.Module) -> dict[str, float]:
        return self._inner.evaluate(module)


def _train_share(
    task: TrainingTask, tables: dict[str, Table], settings: TrainSettings, share: float
) -> CurvePoint:
    from raysys.train._loader import steps_per_epoch
    from raysys.train._loop import total_steps

    some = _Share(task, share, settings.seed)
    arrays = {name: table.arrow() for name, table in tables.items()}
    examples = some.prepare(arrays)
    batch_size = min(settings.batch_size, examples)
    shorter: dict[str, Any] = {"batch_size": batch_size}
    steps = total_steps(some.all, settings)
    shorter |= {"max_steps": steps}
    settings = settings.model_copy(update=shorter)
    settings = settings.model_copy(
        update={"epochs": -(-steps // steps_per_epoch(examples, settings))}
    )
    measured: list[dict[str, float]] = []
    train_in_process(some, arrays, settings, lambda epoch, _: measured.append(epoch))
    return CurvePoint(examples, measured[-1])
