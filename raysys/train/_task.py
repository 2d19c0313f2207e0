"""What is trained, without a word on how it is spread."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pyarrow as pa
    import torch

# What one pass over the training examples measured, `epoch` among it.
Epoch = dict[str, float]
# A module's `state_dict`, on the CPU.
Parameters = dict[str, "torch.Tensor"]
# The arguments of a module's `forward`.
Batch = dict[str, "torch.Tensor"]


class TrainingTask(ABC):
    """A training task for PyTorch, run unchanged under every strategy.

    Workflow, in each worker process:

    1. `prepare` receives the tables, memory-mapped from the object store, and keeps arrays.
    2. `build` makes the module. Its `forward(**batch)` returns the mean loss of a batch.
    3. `batch` turns example numbers into the arguments of `forward`.
    4. `evaluate` measures a module that holds the full parameters; called on rank 0.

    Whatever a batch draws at random (negatives, say) must come from the generator that it is
    given: it is the same on every worker, so that W workers take the step that one would.
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
        """Named measurements of a module in evaluation mode."""

    def predictions(self, module: torch.nn.Module) -> pa.Table | None:
        """A few rows of what the trained module says, beside what was true; tracked with the run.

        None, as here, where there is nothing to show.
        """
        return None
