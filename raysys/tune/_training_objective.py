"""Trials that train a task."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from raysys.train import EpochMetrics, StateDict, save_state_dict, train_in_process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pyarrow as pa

    from raysys.train import TrainingTask, TrainSettings
    from raysys.tune._trial_process import Report


def training(
    make: Callable[[dict[str, Any]], tuple[TrainingTask, TrainSettings]],
) -> Callable[[dict[str, Any], Mapping[str, pa.Table], Report], None]:
    """An objective for `search` that trains a task in the trial's process.

    Each epoch is a round; the parameters of the best are the trial's checkpoint, for
    `raysys.train.load_state_dict`.

    Args:
        make: Turns proposed settings into a task and how it is trained.
    """

    def objective(settings: dict[str, Any], tables: Mapping[str, pa.Table], report: Report) -> None:
        def on_epoch(measured: EpochMetrics, parameters: StateDict) -> None:
            report(measured, save=functools.partial(save_state_dict, parameters))

        task, how = make(settings)
        train_in_process(task, tables, how, on_epoch)

    return objective
