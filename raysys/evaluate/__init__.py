"""Metrics of rankings, of predicted probabilities and of predicted values."""

from raysys.evaluate._probability import binary_measures, calibration_error
from raysys.evaluate._ranking import ndcg, recall, top_k
from raysys.evaluate._regression import regression_measures

__all__ = [
    "binary_measures",
    "calibration_error",
    "ndcg",
    "recall",
    "regression_measures",
    "top_k",
]
