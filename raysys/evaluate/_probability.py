"""Measures of probabilities for what did or did not happen."""

import numpy as np


def binary_measures(happened: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """How well probabilities order what happened, and how far they are to be taken at their word.

    Args:
        happened: 0 or 1, `(n,)`, both among them.
        probabilities: From 0 to 1, `(n,)`.

    Returns:
        `auc`, the area under the ROC curve; `average_precision`, the area under the curve of
        precision over recall, a step at each threshold; `calibration_error`, see there.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "auc": float(roc_auc_score(happened, probabilities)),
        "average_precision": float(average_precision_score(happened, probabilities)),
        "calibration_error": calibration_error(happened, probabilities),
    }


def calibration_error(happened: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error, over bins of equal width.

    The mean distance between a bin's mean probability and its share of what happened, weighted
    by its rows (Naeini, Cooper & Hauskrecht, "Obtaining well calibrated probabilities using
    Bayesian binning", 2015; Guo et al., "On calibration of modern neural networks", 2017,
    equation 3).

    Args:
        happened: 0 or 1, `(n,)`.
        probabilities: From 0 to 1, `(n,)`.
        bins: How many; a bin holds its lower edge, the last one both.
    """
    place = np.minimum((np.asarray(probabilities) * bins).astype(np.int64), bins - 1)
    # In each bin rows times distance is the distance of the sums.
    apart = np.bincount(place, np.asarray(probabilities, np.float64) - happened, bins)
    return float(np.abs(apart).sum() / len(place))
