"""Training: one task, spread by a strategy over the workers of the cluster."""

from raysys.train._fit import FitResult, fit, load_state_dict, save_state_dict
from raysys.train._in_process import (
    LearningCurvePoint,
    OverfitResult,
    learning_curve,
    overfit_one_batch,
    train_in_process,
)
from raysys.train._settings import StrategyName, TrainSettings
from raysys.train._strategy_plan import MemoryEstimate, StrategyPlan, plan
from raysys.train._task import Batch, EpochMetrics, StateDict, TrainingTask
from raysys.train.boosting._boost import BoostSettings, boost
from raysys.train.boosting._boosted_model import BoostedModel
from raysys.train.estimators._bootstrap import bootstrap
from raysys.train.estimators._cross_validation import FoldScores, cross_val_predict, cross_validate
from raysys.train.estimators._fit_estimator import fit_estimator
from raysys.train.trials._session import Machine, PreparedTrial, TrialRound, TrialSession

__all__ = [
    "Batch",
    "BoostSettings",
    "BoostedModel",
    "EpochMetrics",
    "FitResult",
    "FoldScores",
    "LearningCurvePoint",
    "Machine",
    "MemoryEstimate",
    "OverfitResult",
    "PreparedTrial",
    "StateDict",
    "StrategyName",
    "StrategyPlan",
    "TrainSettings",
    "TrainingTask",
    "TrialRound",
    "TrialSession",
    "boost",
    "bootstrap",
    "cross_val_predict",
    "cross_validate",
    "fit",
    "fit_estimator",
    "learning_curve",
    "load_state_dict",
    "overfit_one_batch",
    "plan",
    "save_state_dict",
    "train_in_process",
]
