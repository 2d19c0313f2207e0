"""Metrics of predicted values."""

from __future__ import annotations

from typing import Any

import numpy as np

from raysys.errors import DataError
from raysys.imports import lazy_import

sklearn_metrics = lazy_import("sklearn.metrics")

_MEASURES = (
    "mean_squared_error", "root_mean_squared_error", "mean_absolute_error",
    "median_absolute_error", "mean_absolute_percentage_error", "r2_score",
    "explained_variance_score",
)  # fmt: skip


def regression_measures(
    targets: Any, predictions: Any, *, sample_weight: Any = None, alpha: float | None = None
) -> dict[str, float]:
    """Errors of predicted values, by scikit-learn's names and definitions.

    Args:
        targets: True values, `(n,)`: an array or an Arrow column.
        predictions: Predicted values, `(n,)`.
        sample_weight: Weights of the rows, `(n,)`, not negative.
        alpha: Quantile that the predictions estimate, for `mean_pinball_loss`.

    Returns:
        `mean_squared_error`, `root_mean_squared_error`, `mean_absolute_error`,
        `median_absolute_error`, `mean_absolute_percentage_error`, `r2_score` and
        `explained_variance_score`, all weighted; `max_error` of the rows with a weight; and with
        `alpha` the `mean_pinball_loss`, the quantile loss.

    Raises:
        DataError: Lengths differ, rows are missing, a value is missing or not finite, a weight
            is negative or all are 0, or `alpha` is not between 0 and 1.
    """
    truth, values = finite_column("targets", targets), finite_column("predictions", predictions)
    weights = None if sample_weight is None else finite_column("sample_weight", sample_weight)
    for name, column in (("predictions", values), ("sample_weight", weights)):
        if column is not None and len(column) != len(truth):
            raise DataError(
                f"{len(truth)} targets and {len(column)} {name}: give one for each target"
            )
    if weights is not None and ((weights < 0).any() or not weights.any()):
        raise DataError(
            f"sample_weight from {weights.min():g} to {weights.max():g}: weights are not negative, "
            "and one or more are positive"
        )
    measures = {
        name: float(getattr(sklearn_metrics, name)(truth, values, sample_weight=weights))
        for name in _MEASURES
    }
    counted = slice(None) if weights is None else weights > 0
    measures["max_error"] = float(sklearn_metrics.max_error(truth[counted], values[counted]))
    if alpha is not None:
        if not 0 <= alpha <= 1:
            raise DataError(f"alpha={alpha}: a quantile is from 0 to 1")
        measures["mean_pinball_loss"] = float(
            sklearn_metrics.mean_pinball_loss(truth, values, sample_weight=weights, alpha=alpha)
        )
    return measures


def finite_column(name: str, values: Any) -> np.ndarray:
    """Finite float64 `(n,)` of one or more rows; `(n, 1)`, as modules return it, is `(n,)`."""
    try:
        column = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} are not numbers: {error}") from error
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.ndim != 1 or not len(column):
        raise DataError(f"{name} of shape {column.shape}: give one or more rows, (n,)")
    if wrong := int((~np.isfinite(column)).sum()):
        raise DataError(
            f"{wrong} of {len(column)} {name} are missing or not finite: leave those rows out"
        )
    return column
