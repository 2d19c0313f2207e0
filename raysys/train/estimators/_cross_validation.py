"""Cross-validation on the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys import cluster
from raysys.data import Table
from raysys.errors import DataError
from raysys.train.estimators._fit_estimator import on_cluster, seeded, spread
from raysys.train.estimators._table_frame import Columns, Rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class FoldScores:
    """What a cross-validation found.

    Attributes:
        scores: float64 `(folds,)` for each measure, on the rows that were left out; larger is
            better.
        fit_s: Seconds of each fold's fit.
        score_s: Seconds of each fold's measures.
    """

    scores: dict[str, np.ndarray]
    fit_s: np.ndarray
    score_s: np.ndarray

    @property
    def means(self) -> dict[str, float]:
        """The mean of each measure over the folds."""
        return {name: float(values.mean()) for name, values in self.scores.items()}


def cross_validate(
    estimator: Any,
    table: Table,
    *,
    features: Sequence[str],
    label: str,
    folds: Any = 5,
    groups: str | None = None,
    scoring: Sequence[str] | None = None,
    seed: int = 0,
) -> FoldScores:
    """Fit on all folds but one and measure on that one, each in a task of its own.

    A search as the estimator is nested cross-validation: with `n_jobs=-1` its candidates are
    tasks too.

    Args:
        estimator: See `fit_estimator`.
        table: Features, label and groups.
        features: Columns, in the order that the estimator sees.
        label: Column without missing values.
        folds: A number (of whole classes, if the estimator is a classifier), or one of
            scikit-learn's splitters.
        groups: Column of what must not be in two folds, for a splitter that keeps it together.
        scoring: scikit-learn's names of measures, such as "roc_auc"; by default the estimator's
            own, named "score".
        seed: For each `random_state` that is not set.

    Raises:
        DataError: A column is not there, a label is missing, or the estimator refuses the data.
        ResourceError: The cluster has no CPU beside its head-room.
    """
    columns = Columns(tuple(features), label, groups=groups).checked(table)
    measures = None if scoring is None else list(scoring)
    return on_cluster(
        "cross-validate", _cross_validate, seeded(estimator, seed), table, columns, folds, measures
    )


def cross_predict(
    estimators: Mapping[str, Any],
    table: Table,
    *,
    features: Sequence[str],
    label: str,
    folds: Any = 5,
    groups: str | None = None,
    seed: int = 0,
) -> Table:
    """What estimators say of rows that they were not fitted on: what a stack learns from.

    (Wolpert, "Stacked generalization", 1992.) Fit `features=estimators' columns` of the answer
    with another estimator, and give that to `raysys.models.Ensemble.stack`.

    Args:
        estimators: By the name of their columns.
        table: See `cross_validate`, as the rest.
        features: Columns, in the order that the estimators see.
        label: Column without missing values.
        folds: A number or a splitter under which each row is left out once.
        groups: For the splitter.
        seed: For each `random_state` that is not set.

    Returns:
        A row for each of the Table's, in their order, float64: `name` holds a regressor's value or
        the probability of the second of two classes; `name_0`, `name_1` and so on those of more.
        And the label.

    Raises:
        DataError: A column is not there, a label is missing, a classifier gives no probabilities,
            or an estimator refuses the data.
        ResourceError: The cluster has no CPU beside its head-room.
    """
    columns = Columns(tuple(features), label, groups=groups).checked(table)
    cluster.require("cross-predict", cpus=1)
    unfitted = {name: seeded(estimator, seed) for name, estimator in estimators.items()}
    return Table.load(_cross_predict, unfitted, table, columns, folds, name="cross-predict")


def _cross_validate(
    estimator: Any, table: Table, columns: Columns, folds: Any, scoring: list[str] | None
) -> FoldScores:
    from sklearn import model_selection

    rows = Rows.of(table, columns)
    with spread(estimator, rows):
        found = model_selection.cross_validate(
            estimator, rows.x, rows.y, cv=folds, groups=rows.groups, scoring=scoring,
            error_score="raise",
        )  # fmt: skip
    names = ["score"] if scoring is None else scoring
    return FoldScores(
        {name: found[f"test_{name}"] for name in names}, found["fit_time"], found["score_time"]
    )


def _cross_predict(
    estimators: dict[str, Any], table: Table, columns: Columns, folds: Any
) -> pa.Table:
    from sklearn.base import is_classifier
    from sklearn.model_selection import cross_val_predict

    rows = Rows.of(table, columns)
    said: dict[str, Any] = {}
    for name, estimator in estimators.items():
        if is_classifier(estimator) and not hasattr(estimator, "predict_proba"):
            raise DataError(
                f"{name}: {type(estimator).__name__} gives no probabilities: put it into a "
                "CalibratedClassifierCV"
            )
        method = "predict_proba" if is_classifier(estimator) else "predict"
        with spread(estimator, rows):
            answers = cross_val_predict(
                estimator, rows.x, rows.y, cv=folds, groups=rows.groups, method=method
            ).astype(np.float64)
        if answers.ndim == 1 or answers.shape[1] == 2:
            said[name] = answers if answers.ndim == 1 else answers[:, 1]
        else:
            said |= {f"{name}_{at}": answers[:, at] for at in range(answers.shape[1])}
    return pa.table(said | {columns.label: rows.y})
