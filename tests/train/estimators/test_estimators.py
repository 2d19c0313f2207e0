"""Estimators and cross-validation on the cluster, compared with scikit-learn in this process."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import ray
from scipy.stats import poisson
from sklearn import model_selection
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import (
    BaggingRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeRegressor

from raysys.data import Table
from raysys.errors import DataError, ResourceError
from raysys.telemetry import DriverMeter
from raysys.train import bootstrap, cross_val_predict, cross_validate, fit_estimator
from tests.train.seeing import Seeing

pytestmark = pytest.mark.usefixtures("ray_cluster")

CANCER = load_breast_cancer(as_frame=True).frame
SIZES = [name for name in CANCER.columns if name != "target"]
DIABETES = load_diabetes(as_frame=True).frame
MEASURES = [name for name in DIABETES.columns if name != "target"]


def table_of(frame: pd.DataFrame, rows_per_block: int = 100) -> Table:
    return Table.from_arrow(pa.Table.from_pandas(frame, preserve_index=False), rows_per_block)


def logistic() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression())


def test_cross_validation_matches_scikit_learn() -> None:
    scores = cross_validate(
        logistic(), table_of(CANCER), features=SIZES, label="target", cv=7,
        scoring=["roc_auc", "neg_log_loss"],
    )  # fmt: skip
    expected = model_selection.cross_validate(
        logistic(), CANCER[SIZES], CANCER["target"], cv=7, scoring=["roc_auc", "neg_log_loss"]
    )
    assert list(scores.scores) == ["roc_auc", "neg_log_loss"]
    for name, values in scores.scores.items():
        np.testing.assert_allclose(values, expected[f"test_{name}"], rtol=1e-9)
        assert scores.means[name] == pytest.approx(expected[f"test_{name}"].mean())
    assert len(scores.fit_s) == len(scores.score_s) == 7


def test_a_splitter_keeps_groups_together() -> None:
    frame = DIABETES.assign(group=np.arange(len(DIABETES)) // 9)
    scores = cross_validate(
        Ridge(), table_of(frame), features=MEASURES, label="target", cv=GroupKFold(4),
        groups="group",
    )  # fmt: skip
    expected = model_selection.cross_val_score(
        Ridge(), frame[MEASURES], frame["target"], cv=GroupKFold(4), groups=frame["group"]
    )
    np.testing.assert_allclose(scores.scores["score"], expected, rtol=1e-9)


def test_a_search_matches_scikit_learn() -> None:
    search = GridSearchCV(
        logistic(), {"logisticregression__C": [0.001, 0.1, 1, 10]}, cv=4, scoring="neg_log_loss"
    )
    table = table_of(CANCER)
    meter = DriverMeter()
    meter.install()
    try:
        fitted = fit_estimator(search, table, features=SIZES, label="target")
        assert meter.table_bytes < table.nbytes() / 10  # a search's results hold arrays
    finally:
        meter.uninstall()
    expected = search.fit(CANCER[SIZES], CANCER["target"])
    np.testing.assert_allclose(
        fitted.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"], rtol=1e-9
    )
    assert fitted.best_params_ == expected.best_params_
    assert list(fitted.feature_names_in_) == SIZES


class Holder:
    """Holds CPUs for as long as it lives."""

    def ready(self) -> None:
        """Returns when it has them."""


def test_nested_loops_do_not_wait_for_each_other() -> None:
    # One CPU is left: for the task that waits for the folds, for two folds that wait for the
    # candidates of a search each, and for those.
    held = int(ray.available_resources()["CPU"]) - 1
    holder = ray.remote(Holder).options(num_cpus=held).remote()
    ray.get(holder.ready.remote())
    search = GridSearchCV(Ridge(), {"alpha": [0.01, 1.0]}, cv=2, n_jobs=-1)
    scores = cross_validate(search, table_of(DIABETES), features=MEASURES, label="target", cv=2)
    ray.kill(holder)
    search.n_jobs = None
    expected = model_selection.cross_val_score(search, DIABETES[MEASURES], DIABETES["target"], cv=2)
    np.testing.assert_allclose(scores.scores["score"], expected, rtol=1e-9)


@pytest.mark.parametrize(
    "estimator",
    [
        RandomForestClassifier(12, random_state=3),
        HistGradientBoostingClassifier(max_iter=8, random_state=3),
    ],
)
def test_ensembles_of_trees_match_scikit_learn(estimator: Any) -> None:
    fitted = fit_estimator(estimator, table_of(CANCER), features=SIZES, label="target", cpus=2)
    expected = estimator.fit(CANCER[SIZES], CANCER["target"])
    np.testing.assert_allclose(
        fitted.predict_proba(CANCER[SIZES]), expected.predict_proba(CANCER[SIZES]), rtol=1e-9
    )


def test_rows_are_mapped_by_tasks_and_not_copied() -> None:
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(40_000, 10)))
    rows.columns = [f"x{at}" for at in rows.columns]
    search = GridSearchCV(Seeing(), {"power": list(range(6))}, cv=KFold(2), refit=False)
    fitted = fit_estimator(
        search, table_of(rows, 10_000), features=list(rows.columns)[1:], label="x0"
    )
    assert fitted.cv_results_["mean_test_score"].tolist() == [1.0] * 6


def test_weights_reach_the_last_step() -> None:
    frame = CANCER.assign(weight=np.linspace(0.1, 4, len(CANCER)))
    pipeline = make_pipeline(StandardScaler(), GaussianNB())
    fitted = fit_estimator(
        pipeline, table_of(frame), features=SIZES, label="target", weight="weight"
    )
    expected = pipeline.fit(
        frame[SIZES], frame["target"], gaussiannb__sample_weight=frame["weight"]
    )
    np.testing.assert_allclose(fitted[-1].theta_, expected[-1].theta_, rtol=1e-9)


def test_text_features_are_categorical_and_text_labels_strings() -> None:
    frame = CANCER.assign(
        target=np.where(CANCER["target"] == 1, "benign", "malignant"),
        size=pd.cut(CANCER["mean area"], 3, labels=["small", "middle", "large"]).astype(object),
    )
    frame.loc[::7, "mean radius"] = np.nan
    frame.loc[::5, "size"] = None
    columns = ["mean radius", "size"]
    estimator = make_pipeline(
        ColumnTransformer([
            ("text", OneHotEncoder(handle_unknown="ignore"), ["size"]),
            ("number", "passthrough", ["mean radius"]),
        ]),
        HistGradientBoostingClassifier(max_iter=5, random_state=0),
    )  # fmt: skip
    estimator[0].set_params(sparse_threshold=0)
    fitted = fit_estimator(estimator, table_of(frame), features=columns, label="target")
    expected = estimator.fit(frame[columns], frame["target"])
    assert list(fitted.classes_) == ["benign", "malignant"]
    np.testing.assert_allclose(
        fitted.predict_proba(frame[columns]), expected.predict_proba(frame[columns]), rtol=1e-9
    )


def test_missing_random_states_are_seeded() -> None:
    bag = BaggingRegressor(DecisionTreeRegressor(), n_estimators=6)
    fits = [
        fit_estimator(bag, table_of(DIABETES), features=MEASURES, label="target", seed=seed)
        for seed in (1, 1, 2)
    ]
    first, again, other = (fit.predict(DIABETES[MEASURES]) for fit in fits)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1
    assert bag.random_state is None
    assert not hasattr(bag, "estimators_")


def test_out_of_fold_predictions_match_scikit_learn() -> None:
    predictions = cross_val_predict(
        {"logistic": logistic(), "bayes": GaussianNB()}, table_of(CANCER), features=SIZES,
        label="target", cv=4,
    ).to_arrow()  # fmt: skip
    assert predictions.column_names == ["logistic", "bayes", "target"]
    for name, estimator in (("logistic", logistic()), ("bayes", GaussianNB())):
        expected = model_selection.cross_val_predict(
            estimator, CANCER[SIZES], CANCER["target"], cv=4, method="predict_proba"
        )
        np.testing.assert_allclose(predictions[name].to_numpy(), expected[:, 1], atol=1e-9)
    assert predictions["target"].to_pylist() == CANCER["target"].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": ["mean radius", "size"]}, r"no such column: \['size'\]"),
        ({"features": []}, "one or more"),
        ({"features": [*SIZES, "target"]}, "is among the features"),
        ({"weight": "weight"}, r"no such column: \['weight'\]"),
        ({"estimator": LogisticRegression(C=-1.0)}, "LogisticRegression refuses the data: .*'C'"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    call = {"estimator": logistic(), "features": SIZES, "label": "target"} | arguments
    with pytest.raises(DataError, match=message):
        fit_estimator(table=table_of(CANCER), **call)


def test_unusable_rows_are_refused() -> None:
    frame = CANCER.assign(label=CANCER["target"].where(CANCER.index % 100 != 0))
    frame.loc[5, "mean radius"] = np.nan
    with pytest.raises(DataError, match="'label' has 6 missing values of 569"):
        fit_estimator(logistic(), table_of(frame), features=SIZES, label="label")
    with pytest.raises(DataError, match=r"Pipeline refuses the data: .*contains NaN"):
        cross_validate(logistic(), table_of(frame), features=SIZES, label="target")
    none = table_of(CANCER).filter(pl.col("target") > 1)
    with pytest.raises(DataError, match="no rows"):
        fit_estimator(logistic(), none, features=SIZES, label="target")
    with pytest.raises(DataError, match="machine: LinearSVC has no predict_proba"):
        cross_val_predict(
            {"machine": LinearSVC()}, table_of(CANCER), features=SIZES, label="target"
        )


def test_more_cpus_than_the_cluster_has_are_refused_at_once() -> None:
    with pytest.raises(ResourceError, match="fit GaussianNB needs 99 CPUs"):
        fit_estimator(GaussianNB(), table_of(CANCER), features=SIZES, label="target", cpus=99)


def test_a_bootstrap_sample_does_not_depend_on_the_blocks() -> None:
    rows = 60_000
    frame = pd.DataFrame({"row": np.arange(rows)})
    drawn = bootstrap(table_of(frame, 20_000), 1).to_arrow()["row"].to_numpy()
    cut = bootstrap(table_of(frame, 7_000), 1).to_arrow()["row"].to_numpy()
    np.testing.assert_array_equal(drawn, cut)
    counts = np.bincount(np.bincount(drawn, minlength=rows), minlength=6)[:6]
    np.testing.assert_allclose(
        counts / rows, poisson.pmf(np.arange(6), 1), atol=5 * np.sqrt(0.25 / rows)
    )
    other = bootstrap(table_of(frame, 20_000), 2).to_arrow()["row"].to_numpy()
    assert len(other) != len(drawn) or (other != drawn).any()
