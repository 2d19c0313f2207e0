"""Training: one task, spread by a strategy over the workers of the cluster."""

from raysys.train._boosted import Boosted
from raysys.train._boosting import BoostSettings, boost
from raysys.train._bootstrap import bootstrap
from raysys.train._cross import FoldScores, cross_predict, cross_validate
from raysys.train._estimators import fit_estimator
from raysys.train._fit import Fitted, fit, load_parameters, save_parameters
from raysys.train._in_process import train_in_process
from raysys.train._measure import Machine, Measuring, Opened, Round
from raysys.train._plan import Estimate, Plan, plan
from raysys.train._settings import StrategyName, TrainSettings
from raysys.train._study import CurvePoint, Overfit, learning_curve, overfit_one_batch
from raysys.train._task import Batch, Epoch, Parameters, TrainingTask

__all__ = [
    "Batch",
    "BoostSettings",
    "Boosted",
    "CurvePoint",
    "Epoch",
    "Estimate",
    "Fitted",
    "FoldScores",
    "Machine",
    "Measuring",
    "Opened",
    "Overfit",
    "Parameters",
    "Plan",
    "Round",
    "StrategyName",
    "TrainSettings",
    "TrainingTask",
    "boost",
    "bootstrap",
    "cross_predict",
    "cross_validate",
    "fit",
    "fit_estimator",
    "learning_curve",
    "load_parameters",
    "overfit_one_batch",
    "plan",
    "save_parameters",
    "train_in_process",
]
