"""Metrics of predicted probabilities of binary outcomes."""

from typing import Any

import numpy as np

from raysys.errors import DataError
from raysys.evaluate._regression import finite_column
from raysys.imports import lazy_import

sklearn_metrics = lazy_import("sklearn.metrics")


def binary_measures(
    labels: np.ndarray, probabilities: np.ndarray, *, sample_weight: np.ndarray | None = None
) -> dict[str, float]:
    """Discrimination and calibration of predicted probabilities.

    Args:
        labels: 0 or 1, `(n,)`, with both classes.
        probabilities: From 0 to 1, `(n,)`.
        sample_weight: Weights of the rows, `(n,)`.

    Returns:
        `auc`, the area under the ROC curve; `average_precision`, the area under the curve of
        precision over recall, a step at each threshold; and `calibration_error`.

    Raises:
        DataError: Lengths differ, a label is not 0 or 1, all labels are the same, or a probability
            is missing or not from 0 to 1.
    """
    weights = sample_weight
    labels, probabilities = _checked(labels, probabilities)
    if labels.all() or not labels.any():
        raise DataError(f"all {len(labels)} labels are {labels[0]:g}: give rows of both classes")
    precision = sklearn_metrics.average_precision_score(
        labels, probabilities, sample_weight=weights
    )
    return {
        "auc": float(sklearn_metrics.roc_auc_score(labels, probabilities, sample_weight=weights)),
        "average_precision": float(precision),
        "calibration_error": calibration_error(labels, probabilities, sample_weight=weights),
    }


def calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 15, *,
    sample_weight: np.ndarray | None = None,
) -> float:  # fmt: skip
    """The expected calibration error, over bins of equal width.

    The mean distance between a bin's mean probability and its share of positives, weighted by
    its rows (Naeini, Cooper & Hauskrecht, "Obtaining well calibrated probabilities using
    Bayesian binning", 2015; Guo et al., "On calibration of modern neural networks", 2017,
    equation 3).

    Args:
        labels: 0 or 1, `(n,)`.
        probabilities: From 0 to 1, `(n,)`.
        bins: Number of bins; a bin includes its lower edge, the last one both edges.
        sample_weight: Weights of the rows, `(n,)`.

    Raises:
        DataError: As for `binary_measures`; labels may be all the same.
    """
    labels, probabilities = _checked(labels, probabilities)
    weights = 1.0 if sample_weight is None else np.asarray(sample_weight, np.float64)
    bin_of_row = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    # In each bin, rows times distance is the distance of the sums.
    gaps = weights * (probabilities - labels)
    total = np.sum(np.broadcast_to(weights, gaps.shape))
    return float(np.abs(np.bincount(bin_of_row, gaps, bins)).sum() / total)


def _checked(labels: Any, probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities, float64 `(n,)`."""
    labels = finite_column("labels", labels)
    probabilities = finite_column("probabilities", probabilities)
    if len(labels) != len(probabilities):
        raise DataError(
            f"{len(labels)} labels and {len(probabilities)} probabilities: give one for each label"
        )
    if wrong := np.setdiff1d(labels, (0, 1)).tolist():
        raise DataError(f"labels such as {wrong[0]:g}: give 1 for the positive class and 0 else")
    low, high = probabilities.min(), probabilities.max()
    if low < 0 or high > 1:
        raise DataError(
            f"probabilities from {low:g} to {high:g}: give values from 0 to 1, such as "
            "1 / (1 + exp(-margin)) of margins"
        )
    return labels, probabilities
