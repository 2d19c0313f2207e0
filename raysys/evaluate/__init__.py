"""Metrics of rankings and of predicted probabilities."""

from raysys.evaluate._probability import binary_measures, calibration_error
from raysys.evaluate._ranking import ndcg, recall, top_k

__all__ = ["binary_measures", "calibration_error", "ndcg", "recall", "top_k"]
