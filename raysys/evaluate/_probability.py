"""Metrics of predicted probabilities of binary outcomes."""

import numpy as np

from raysys.imports import lazy_import

sklearn_metrics = lazy_import("sklearn.metrics")


def binary_measures(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Discrimination and calibration of predicted probabilities.

    Args:
        labels: 0 or 1, `(n,)`, with both classes.
        probabilities: From 0 to 1, `(n,)`.

    Returns:
        `auc`, the area under the ROC curve; `average_precision`, the area under the curve of
        precision over recall, a step at each threshold; and `calibration_error`.
    """
    return {
        "auc": float(sklearn_metrics.roc_auc_score(labels, probabilities)),
        "average_precision": float(sklearn_metrics.average_precision_score(labels, probabilities)),
        "calibration_error": calibration_error(labels, probabilities),
    }


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error, over bins of equal width.

    The mean distance between a bin's mean probability and its share of positives, weighted by
    its rows (Naeini, Cooper & Hauskrecht, "Obtaining well calibrated probabilities using
    Bayesian binning", 2015; Guo et al., "On calibration of modern neural networks", 2017,
    equation 3).

    Args:
        labels: 0 or 1, `(n,)`.
        probabilities: From 0 to 1, `(n,)`.
        bins: Number of bins; a bin includes its lower edge, the last one both edges.
    """
    bin_of_row = np.minimum((np.asarray(probabilities) * bins).astype(np.int64), bins - 1)
    # In each bin, rows times distance is the distance of the sums.
    distances = np.bincount(bin_of_row, np.asarray(probabilities, np.float64) - labels, bins)
    return float(np.abs(distances).sum() / len(bin_of_row))
