"""Cross-validation on the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raysys import cluster
from raysys.arguments import checked
from raysys.data import Table
from raysys.errors import DataError
from raysys.imports import lazy_import
from raysys.train.estimators._fit_estimator import on_cluster, ray_joblib, seeded
from raysys.train.estimators._table_frame import FrameColumns, FrameRows

model_selection = lazy_import("sklearn.model_selection")
sklearn_base = lazy_import("sklearn.base")


@dataclass(frozen=True)
class FoldScores:
    """Results of a cross-validation.

    Attributes:
        scores: float64 `(folds,)` for each metric, on the test fold; larger is better.
        fit_s: Seconds of each fold's fit.
        score_s: Seconds of each fold's scoring.
    """

    scores: dict[str, np.ndarray]
    fit_s: np.ndarray
    score_s: np.ndarray

    @property
    def means(self) -> dict[str, float]:
        """Mean of each metric over the folds."""
        return {name: float(values.mean()) for name, values in self.scores.items()}


@checked
def cross_validate(
    estimator: Any,
    table: Table,
    *,
    features: Sequence[str],
    label: str,
    cv: Any = 5,
    groups: str | None = None,
    scoring: Sequence[str] | None = None,
    seed: int = 0,
) -> FoldScores:
    """Fit on all folds but one and score that one, each in a task, as in scikit-learn.

    A search as the estimator is nested cross-validation: with `n_jobs=-1` its candidates are
    tasks too.

    Args:
        estimator: See `fit_estimator`.
        table: Features, label and groups.
        features: Feature columns, in the order of the matrix.
        label: Column without missing values.
        cv: Number of folds (stratified for a classifier), or one of scikit-learn's splitters.
        groups: Column of groups for a splitter that keeps them together.
        scoring: scikit-learn's names of metrics, such as "roc_auc"; by default the estimator's
            own, named "score".
        seed: Seed of every `random_state` that is not set.

    Raises:
        DataError: A column or a label is missing, or the estimator refuses the data.
        ResourceError: The cluster has no CPU beyond its headroom.
    """
    columns = FrameColumns(tuple(features), label, groups=groups).checked(table)
    metrics = None if scoring is None else list(scoring)
    return on_cluster(
        "cross-validate", _cross_validate, seeded(estimator, seed), table, columns, cv, metrics
    )


@checked
def cross_val_predict(
    estimators: Mapping[str, Any],
    table: Table,
    *,
    features: Sequence[str],
    label: str,
    cv: Any = 5,
    groups: str | None = None,
    seed: int = 0,
) -> Table:
    """Out-of-fold predictions of estimators, to train the final estimator of a stack.

    (Wolpert, "Stacked generalization", 1992.) Fit another estimator on the columns of the result,
    and pass it to `raysys.models.Ensemble.stack`.

    Args:
        estimators: Estimators by the name of their column.
        table: Features, label and groups.
        features: Feature columns, in the order of the matrix.
        label: Column without missing values.
        cv: Number of folds, or a splitter with each row in one test fold.
        groups: Column of groups for the splitter.
        seed: Seed of every `random_state` that is not set.

    Returns:
        The Table's rows in their order, float64: `name` is a regressor's value or the probability
        of the second of two classes; `name_0`, `name_1` and so on the probabilities of more
        classes; and the label.

    Raises:
        DataError: A column or a label is missing, a classifier has no `predict_proba`, or an
            estimator refuses the data.
        ResourceError: The cluster has no CPU beyond its headroom.
    """
    columns = FrameColumns(tuple(features), label, groups=groups).checked(table)
    cluster.require("cross_val_predict", cpus=1)
    unfitted = {name: seeded(estimator, seed) for name, estimator in estimators.items()}
    return Table.load(_cross_val_predict, unfitted, table, columns, cv, name="cross_val_predict")


def _cross_validate(
    estimator: Any, table: Table, columns: FrameColumns, cv: Any, scoring: list[str] | None
) -> FoldScores:
    rows = FrameRows.of(table, columns)
    with ray_joblib(estimator, rows):
        results = model_selection.cross_validate(
            estimator, rows.x, rows.y, cv=cv, groups=rows.groups, scoring=scoring,
            error_score="raise",
        )  # fmt: skip
    names = ["score"] if scoring is None else scoring
    scores = {name: results[f"test_{name}"] for name in names}
    return FoldScores(scores, results["fit_time"], results["score_time"])


def _cross_val_predict(
    estimators: dict[str, Any], table: Table, columns: FrameColumns, cv: Any
) -> pa.Table:
    rows = FrameRows.of(table, columns)
    predictions: dict[str, Any] = {}
    for name, estimator in estimators.items():
        if sklearn_base.is_classifier(estimator) and not hasattr(estimator, "predict_proba"):
            raise DataError(
                f"{name}: {type(estimator).__name__} has no predict_proba: wrap it in a "
                "CalibratedClassifierCV"
            )
        method = "predict_proba" if sklearn_base.is_classifier(estimator) else "predict"
        with ray_joblib(estimator, rows):
            predicted = model_selection.cross_val_predict(
                estimator, rows.x, rows.y, cv=cv, groups=rows.groups, method=method
            ).astype(np.float64)
        if predicted.ndim == 1 or predicted.shape[1] == 2:
            predictions[name] = predicted if predicted.ndim == 1 else predicted[:, 1]
        else:
            predictions |= {f"{name}_{k}": column for k, column in enumerate(predicted.T)}
    return pa.table(predictions | {columns.label: rows.y})
