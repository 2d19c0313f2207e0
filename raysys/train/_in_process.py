"""Training in one process, as in a search's trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from raysys.imports import lazy_import

if TYPE_CHECKING:
    import pyarrow as pa

    from raysys.train._settings import TrainSettings
    from raysys.train._task import EpochMetrics, StateDict, TrainingTask

torch = lazy_import("torch")


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
    from raysys.train.strategies._strategy import SingleDeviceStrategy

    class Callback(TrainCallback):
        def on_epoch_end(self, metrics: EpochMetrics, parameters: StateDict) -> None:
            on_epoch_end(metrics, parameters)

    examples = task.prepare(tables)
    torch.manual_seed(settings.seed)
    strategy = SingleDeviceStrategy(task.build(), settings, "cpu")
    strategy.start()
    run_steps(task, settings, strategy, examples, TrainingProgress(), Callback())
