"""An objective that trains a task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from raysys.train import EpochMetrics, StateDict, save_state_dict, train_in_process

if TYPE_CHECKING:
    import pyarrow as pa

    from raysys.train import TrainingTask, TrainSettings
    from raysys.tune._trial_process import TrialReporter


def training(
    make: Callable[[dict[str, Any]], tuple[TrainingTask, TrainSettings]],
) -> Callable[[dict[str, Any], Mapping[str, pa.Table], TrialReporter], None]:
    """Objective for `search` that trains a task in the trial's process.

    Each epoch is a round; the weights of the best one are the trial's checkpoint, for
    `raysys.train.load_state_dict`.

    Args:
        make: Function from proposed parameters to a task and its training settings.
    """

    def objective(
        params: dict[str, Any], tables: Mapping[str, pa.Table], report: TrialReporter
    ) -> None:
        def on_epoch(metrics: EpochMetrics, parameters: StateDict) -> None:
            report(metrics, save=functools.partial(save_state_dict, parameters))

        task, settings = make(params)
        train_in_process(task, tables, settings, on_epoch)

    return objective
