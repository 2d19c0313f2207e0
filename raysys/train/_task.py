"""The training task: data, module and loss, without a word on workers."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from raysys.errors import TrainError
from raysys.train._failures import task_errors

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch

    from raysys.data import Table

# Metrics of one epoch, with its number as "epoch".
EpochMetrics = dict[str, float]
# A module's `state_dict`, on the CPU.
StateDict = dict[str, "torch.Tensor"]
# The arguments of a module's `forward`.
Batch = dict[str, "torch.Tensor"]


class TrainingTask(ABC):
    """A training task for PyTorch, run unchanged under every strategy.

    Workflow, in each worker process:

    1. `prepare` receives the tables, memory-mapped from the object store, and keeps arrays.
    2. `build` makes the module. Its `forward(**batch)` returns the mean loss of a batch.
    3. `batch` turns example numbers into the arguments of `forward`.
    4. `evaluate` measures a module that holds the full parameters; called on rank 0.

    Random draws of a batch (negatives, say) must come from the given generator: it is the same on
    every worker, so that many workers take the step that one would.
    """

    @abstractmethod
    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        """Keep what the task needs of the tables; return the number of training examples."""

    @abstractmethod
    def build(self) -> torch.nn.Module:
        """Make the module with freshly initialised parameters."""

    @abstractmethod
    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """The arguments of `forward` for the examples `rows`, int64 `(n,)`."""

    @abstractmethod
    def evaluate(self, module: torch.nn.Module) -> dict[str, float]:
        """Named metrics of a module in evaluation mode."""

    def predictions(self, module: torch.nn.Module) -> pa.Table | None:
        """A few predictions beside the true values, tracked with the run; None for no such rows."""
        return None


def prepared_examples(task: TrainingTask, tables: Mapping[str, Table]) -> int:
    """Number of training examples of a task, which is prepared for this process."""
    with task_errors(task, "prepare"):
        examples = task.prepare({name: table.to_arrow() for name, table in tables.items()})
    if not isinstance(examples, numbers.Integral) or examples < 1:
        raise TrainError(
            f"{type(task).__name__}.prepare returned {examples!r}, not the number of training "
            "examples: return it, at least 1"
        )
    return int(examples)
