"""Training: one task, spread by a strategy over the workers of the cluster."""

from raysys.train._boosting import BoostSettings, boost
from raysys.train._fit import Fitted, fit, load_parameters, save_parameters
from raysys.train._loop import Epoch, Parameters, StrategyName, TrainSettings, train_in_process
from raysys.train._task import TrainingTask

__all__ = [
    "BoostSettings",
    "Epoch",
    "Fitted",
    "Parameters",
    "StrategyName",
    "TrainSettings",
    "TrainingTask",
    "boost",
    "fit",
    "load_parameters",
    "save_parameters",
    "train_in_process",
]
