"""Training: one task, spread by a strategy over the workers of the cluster."""

from raysys.train._diagnostics import CurvePoint, Overfit, learning_curve, overfit_one_batch
from raysys.train._fit import Fitted, fit, load_parameters, save_parameters
from raysys.train._in_process import train_in_process
from raysys.train._settings import StrategyName, TrainSettings
from raysys.train._strategy_plan import Estimate, Plan, plan
from raysys.train._task import Batch, Epoch, Parameters, TrainingTask
from raysys.train.boosting._boost import BoostSettings, boost
from raysys.train.boosting._boosted import Boosted
from raysys.train.estimators._bootstrap import bootstrap
from raysys.train.estimators._cross_validation import FoldScores, cross_predict, cross_validate
from raysys.train.estimators._fit_estimator import fit_estimator
from raysys.train.trials._session import Machine, Measuring, Opened, Round

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
