"""Training in one process, as a search's trial does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pyarrow as pa

    from raysys.train._checkpoint import Progress
    from raysys.train._settings import TrainSettings
    from raysys.train._task import Epoch, Parameters, TrainingTask


def train_in_process(
    task: TrainingTask,
    tables: Mapping[str, pa.Table],
    settings: TrainSettings,
    on_epoch: Callable[[Epoch, Parameters], None],
) -> None:
    """Train in this process alone, whatever the settings say of strategy and workers.

    Raises:
        TrainError: The loss or the gradient is not finite or explodes.
    """
    import torch

    from raysys.train._checkpoint import Progress
    from raysys.train._loop import run_steps
    from raysys.train.strategies._base import Plain

    class Reporter:
        def on_epoch(self, measured: Epoch, parameters: Parameters) -> None:
            on_epoch(measured, parameters)

        def on_step(self, progress: Progress, point: Mapping[str, float] | None) -> None:
            pass

    examples = task.prepare(tables)
    torch.manual_seed(settings.seed)
    replica = Plain(task.build(), settings, "cpu")
    replica.start()
    run_steps(task, settings, replica, examples, Progress(), Reporter())
