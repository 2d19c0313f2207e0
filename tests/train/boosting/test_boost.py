"""Boosting on actors compared with XGBoost in one process and with scikit-learn's metrics."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xgboost
from sklearn.metrics import accuracy_score, log_loss, ndcg_score, roc_auc_score

from raysys.data import Table
from raysys.errors import DataError, ResourceError, SettingsError, StorageError
from raysys.evaluate import regression_measures
from raysys.storage import Storage
from raysys.train import BoostedModel, BoostSettings, boost
from raysys.train.boosting._boosting_rounds import BoostPlan, run_rounds, unpack

ROWS, GROUP, PARTS = 800, 20, 4
FEATURES = ["a", "b", "c"]
CITIES = np.array(["Oslo", "Rom", "Ulm", "Wien"])


def frame(seed: int, rows: int = ROWS) -> pd.DataFrame:
    """Rows with labels of every kind.

    Features have few distinct values, so that their bins do not depend on who has which rows.
    """
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.integers(0, 40, size=(rows, 3)), columns=FEATURES, dtype=float)
    table["city"] = CITIES[rng.integers(0, 4, rows)]
    table["group"] = np.arange(rows) // GROUP
    table["weight"] = rng.integers(1, 4, rows).astype(float)
    score = table["a"] / 20 + (table["b"] > 25) + np.isin(table["city"], ["Rom", "Wien"])
    table["number"] = score + rng.normal(0, 0.5, rows)
    table["grade"] = table["number"].round().clip(0, 4)
    table["kind"] = np.array(["low", "middle", "high"])[np.digitize(table["number"], [1.0, 2.0])]
    table["late"] = table["number"] > 1.5
    return table


def table_of(table: pd.DataFrame, parts: int = PARTS) -> Table:
    return Table.from_arrow(pa.Table.from_pandas(table), rows_per_block=len(table) // parts)


def local(table: pd.DataFrame, label: Any, **more: Any) -> xgboost.DMatrix:
    return xgboost.QuantileDMatrix(table[FEATURES], label, nthread=1, **more)


def trained_locally(
    settings: BoostSettings, data: xgboost.DMatrix, **params: Any
) -> xgboost.Booster:
    return xgboost.train(settings.params() | params, data, settings.num_boost_round)


def small(objective: Any, **more: Any) -> BoostSettings:
    return BoostSettings(
        objective=objective, **({"num_boost_round": 8, "max_depth": 3, "learning_rate": 0.3} | more)
    )


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, Table]:
    table = frame(seed=1)
    return table, table_of(table)


# --- settings ---


def test_settings_reach_xgboost() -> None:
    settings = BoostSettings(
        objective="binary:logistic", colsample_bytree=0.9, colsample_bynode=0.3, max_bin=128
    )
    rng = np.random.default_rng(0)
    data = xgboost.DMatrix(rng.normal(size=(50, 4)), rng.random(50))
    learner = json.loads(xgboost.train(settings.params(), data, 1).save_config())["learner"]
    trained = learner["gradient_booster"]["tree_train_param"]
    assert float(trained["colsample_bytree"]) == pytest.approx(0.9)
    assert float(trained["colsample_bynode"]) == pytest.approx(0.3)
    assert int(trained["max_bin"]) == 128


@pytest.mark.parametrize(
    "wrong",
    [
        {"colsample_bynode": 0}, {"max_bin": 1}, {"objective": "rank:best"},
        {"min_actors": 3}, {"trees": 5}, {"quantile_alpha": 1.0},
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        BoostSettings(**({"objective": "rank:ndcg"} | wrong))


def test_a_quantile_without_its_number_is_refused() -> None:
    for more in ({"objective": "reg:quantileerror"}, {"eval_metric": "quantile"}):
        with pytest.raises(SettingsError, match="need quantile_alpha, such as"):
            BoostSettings(**({"objective": "reg:squarederror"} | more))


@pytest.mark.parametrize(
    ("objective", "metric", "measure"),
    [
        ("reg:squarederror", "rmse", "root_mean_squared_error"),
        ("reg:absoluteerror", "mae", "mean_absolute_error"),
        ("reg:squarederror", "mape", "mean_absolute_percentage_error"),
        ("reg:quantileerror", "quantile", "mean_pinball_loss"),
    ],
)
def test_regression_metrics_are_those_of_scikit_learn(
    objective: Any, metric: str, measure: str
) -> None:
    rows, other = frame(seed=1), frame(seed=2)
    settings = small(objective, eval_metric=metric, quantile_alpha=0.8)
    plan = BoostPlan(settings.params(), settings.num_boost_round, None, 10)
    training, validation = (
        local(part, part["number"] + 3, weight=part["weight"]) for part in (rows, other)
    )
    packed = run_rounds(plan, training, validation, after_round=lambda *_: False)
    booster, history = unpack(packed)
    values = booster.inplace_predict(other[FEATURES].to_numpy())
    measures = regression_measures(
        other["number"] + 3, values, sample_weight=other["weight"], alpha=0.8
    )
    assert history.metric == metric
    assert history.values[-1] == pytest.approx(measures[measure], rel=1e-5)
    assert history.best_iteration == int(np.argmin(history.values))


# --- the same predictions as XGBoost in one process ---

cluster = pytest.mark.usefixtures("ray_cluster")


@cluster
def test_regression_with_row_weights_matches_one_process(
    tables: tuple[pd.DataFrame, Table],
) -> None:
    rows, table = tables
    settings = small("reg:squarederror")
    ours = boost(table, settings, label="number", weight="weight", features=FEATURES)
    theirs = trained_locally(settings, local(rows, rows["number"], weight=rows["weight"]))

    other = frame(seed=9)
    predicted = ours.predict(table_of(other, parts=3), keep=["number", "group"]).to_arrow()
    assert predicted.column_names == ["number", "group", "prediction"]
    np.testing.assert_array_equal(predicted["number"].to_numpy(), other["number"])
    expected = theirs.inplace_predict(other[FEATURES].to_numpy())
    np.testing.assert_allclose(predicted["prediction"].to_numpy(), expected, rtol=1e-4, atol=1e-5)
    gains = theirs.get_score(importance_type="total_gain")
    shares = {name: gain / sum(gains.values()) for name, gain in gains.items()}
    assert ours.feature_importances == pytest.approx(shares, rel=1e-3)
    assert list(ours.feature_importances.values()) == sorted(shares.values(), reverse=True)


@cluster
def test_a_quantile_is_predicted(tables: tuple[pd.DataFrame, Table]) -> None:
    rows, table = tables
    settings = small("reg:quantileerror", quantile_alpha=0.8, num_boost_round=20)
    model = boost(table, settings, label="number", features=FEATURES, validation=table)
    values = model.predict_batch(rows)["prediction"]
    assert (rows["number"] <= values).mean() == pytest.approx(0.8, abs=0.03)
    loss = regression_measures(rows["number"], values, alpha=0.8)["mean_pinball_loss"]
    assert model.history[-1] == pytest.approx(loss, rel=1e-4)


@cluster
def test_ranking_matches_one_process(tables: tuple[pd.DataFrame, Table]) -> None:
    rows, table = tables
    settings = small("rank:ndcg", eval_metric="ndcg@5")
    used = table.select([*FEATURES, "group", "grade"])
    other = frame(seed=3)
    validation = table_of(other).select([*FEATURES, "group", "grade"])
    ours = boost(used, settings, label="grade", group="group", validation=validation)
    theirs = trained_locally(settings, local(rows, rows["grade"], qid=rows["group"]))

    scores = ours.predict_batch(other)["prediction"]
    expected = theirs.inplace_predict(other[FEATURES].to_numpy())
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    of_groups = (len(other) // GROUP, GROUP)
    gains = 2.0 ** other["grade"].to_numpy().reshape(of_groups) - 1
    measured = ndcg_score(gains, scores.reshape(of_groups), k=5)
    assert ours.metric == "ndcg@5"
    assert ours.history[-1] == pytest.approx(measured, abs=1e-2)  # ties are averaged


@cluster
def test_text_classes_with_balanced_weights_and_a_categorical_column(
    tables: tuple[pd.DataFrame, Table],
) -> None:
    rows, table = tables
    settings = small("multi:softprob")
    columns = [*FEATURES, "city"]
    other = frame(seed=4)
    ours = boost(
        table, settings,
        label="kind", features=columns, class_weights="balanced", validation=table_of(other),
    )  # fmt: skip

    kinds = ["high", "low", "middle"]
    coded = rows[FEATURES].assign(city=np.searchsorted(CITIES, rows["city"]))
    label = np.searchsorted(kinds, rows["kind"])
    weight = len(rows) / (3 * np.bincount(label))[label]
    data = xgboost.QuantileDMatrix(
        coded.to_numpy(), label, weight=weight,
        feature_types=["q", "q", "q", "c"], enable_categorical=True, nthread=1,
    )  # fmt: skip
    theirs = trained_locally(settings, data, num_class=3)

    predicted = ours.predict(table_of(other)).to_arrow()
    names = [f"probability_{kind}" for kind in kinds]
    probabilities = np.stack([predicted[name].to_numpy() for name in names], axis=1)
    asked = other[FEATURES].assign(city=np.searchsorted(CITIES, other["city"])).to_numpy()
    expected = theirs.predict(xgboost.DMatrix(
        asked, feature_types=["q", "q", "q", "c"], enable_categorical=True
    ))  # fmt: skip
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-5)
    assert predicted["prediction"].to_pylist() == [kinds[at] for at in expected.argmax(axis=1)]
    assert accuracy_score(other["kind"], predicted["prediction"].to_pylist()) > 0.6
    exact = expected.astype(float) / expected.sum(axis=1, keepdims=True, dtype=float)
    measured = log_loss(other["kind"], exact, labels=kinds)
    assert (ours.metric, ours.history[-1]) == ("mlogloss", pytest.approx(measured, rel=1e-4))

    # An unknown city is treated as a missing one, in a request and in a Table.
    alike = {name: [1.0] * 3 for name in FEATURES} | {"city": ["Paris", None, "Ulm"]}
    answer = ours.predict_batch(alike)
    assert answer["probability_low"][0] == answer["probability_low"][1]
    assert answer["probability_low"][0] != ours.predict_batch(
        {name: [1.0] for name in FEATURES} | {"city": ["Rom"]}
    )["probability_low"][0]  # fmt: skip
    table_answer = ours.predict(Table.from_arrow(pa.table(alike))).to_arrow()
    np.testing.assert_array_equal(table_answer["probability_low"], answer["probability_low"])


@cluster
def test_early_stopping_ends_in_the_same_round_as_in_one_process(
    tables: tuple[pd.DataFrame, Table], tmp_path: Path
) -> None:
    rows, table = tables
    other = frame(seed=2)
    settings = small("binary:logistic", num_boost_round=200, early_stopping_rounds=3)
    ours = boost(
        table, settings, label="late", features=FEATURES, validation=table_of(other),
        class_weights={False: 1.0, True: 2.0},
    )  # fmt: skip
    data = local(rows, rows["late"], weight=1.0 + rows["late"])
    validation, history = local(other, other["late"], ref=data), {}
    theirs = xgboost.train(
        settings.params(), data, 200, evals=[(validation, "other")], evals_result=history,
        early_stopping_rounds=3, verbose_eval=False,
    )  # fmt: skip
    assert ours.num_boosted_rounds == theirs.best_iteration + 1 < 190
    np.testing.assert_allclose(ours.history, history["other"]["logloss"], rtol=1e-5)

    ours.save(tmp_path / "model")
    stored = BoostedModel.load(tmp_path / "model")
    assert stored.history == ours.history
    assert ours.best_iteration == theirs.best_iteration
    assert repr(stored) == (
        f"BoostedModel(binary:logistic, {ours.num_boosted_rounds} rounds, best iteration "
        f"{theirs.best_iteration}, logloss {min(ours.history):.4f}, last {ours.history[-1]:.4f}, "
        "3 features)"
    )
    for model in (ours, stored):
        predicted = model.predict_batch(other)
        assert predicted["prediction"].dtype == bool
        best = theirs[: ours.num_boosted_rounds].predict(validation)
        np.testing.assert_allclose(predicted["probability_True"], best, rtol=1e-4, atol=1e-5)
    assert roc_auc_score(other["late"], predicted["probability_True"]) > 0.8
    nothing = ours.predict_batch({name: [] for name in FEATURES})
    assert [len(column) for column in nothing.values()] == [0, 0, 0]


# --- refused input ---


@cluster
@pytest.mark.parametrize(
    ("changed", "settings", "arguments", "message"),
    [
        ({"late": [None] + [1] * 99}, {}, {}, "1 of 100 rows have no label in 'late'"),
        ({"late": ["no", "yes", "?", "?"] * 25}, {}, {}, "needs two classes; 'late' has 3.*softp"),
        ({"late": [1] * 100}, {}, {}, "needs two classes; 'late' has 1"),
        ({"late": ["no", "yes"] * 50}, {"objective": "reg:gamma"}, {}, "this objective predicts n"),
        ({"late": [-1, 1] * 50}, {"objective": "count:poisson"}, {}, "from -1 to 1; count:poisson"),
        ({"late": [0.5, np.inf] * 50}, {"objective": "reg:logistic"}, {}, "50 of 100 rows have no"),
        ({"x": [np.inf] + [1.0] * 99}, {}, {}, r"infinite in float32 in \['x'\]"),
        ({"x": [1e39] + [1.0] * 99}, {}, {}, r"infinite in float32 in \['x'\]"),
        ({"w": [0.0] * 100}, {}, {"weight": "w"}, "all weights in 'w' are 0"),
        (
            {"late": [1.5, 1.0] * 50},
            {"objective": "rank:ndcg", "num_actors": 1},
            {"group": "g"},
            "'late' has 1.5; rank:ndcg needs integers",
        ),
        ({"w": [-1.0] * 100}, {}, {"weight": "w"}, "100 weights in 'w'"),
        ({}, {"objective": "rank:ndcg"}, {}, "ranking requires the column"),
        ({}, {"objective": "rank:ndcg"}, {"group": "g"}, "1 blocks with rows cannot feed 3 actors"),
        (
            {"g": [0, 1] * 50},
            {"objective": "rank:map"},
            {"group": "g"},
            "2 groups .* into 100 runs",
        ),
        ({}, {"eval_metric": "best"}, {}, "XGBoost refuses them: .*best"),
        ({}, {"early_stopping_rounds": 3}, {}, "early_stopping_rounds=3 without a validation"),
        ({}, {"num_actors": 101, "objective": "reg:logistic"}, {}, "101 CPUs"),
        ({}, {}, {"class_weights": {0: 1.0}}, "each of the classes"),
        ({}, {"objective": "reg:logistic"}, {"class_weights": "balanced"}, "has no classes"),
        ({}, {}, {"name": "alone"}, "a resumable run needs both"),
    ],
)
def test_invalid_tables_and_arguments_are_refused(
    changed: dict[str, Any], settings: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    columns = {"x": np.arange(100.0), "g": np.arange(100) // 10, "late": np.arange(100) % 2}
    table = Table.from_arrow(pa.table(columns | changed))
    with pytest.raises((DataError, ResourceError), match=message):
        boost(
            table,
            small(**({"objective": "binary:logistic", "num_actors": 3} | settings)),
            label="late",
            **arguments,
        )


@cluster
def test_validation_rows_with_unknown_classes_or_missing_columns_are_refused(
    tables: tuple[pd.DataFrame, Table],
) -> None:
    _, table = tables
    with pytest.raises(DataError, match=r"training Table lacks.*{'none': 800}"):
        boost(
            table, small("multi:softprob"), label="kind", features=FEATURES,
            validation=table.with_columns(kind=pl.lit("none")),
        )  # fmt: skip
    with pytest.raises(DataError, match=r"no columns \['c'\]"):
        boost(
            table, small("multi:softprob"), label="kind", features=FEATURES,
            validation=table.select(["a", "b", "kind"]),
        )  # fmt: skip


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no boosted model"):
        BoostedModel.load(tmp_path)


@cluster
def test_a_finished_run_is_returned_at_once_and_another_of_its_name_is_refused(
    tables: tuple[pd.DataFrame, Table], storage: Storage
) -> None:
    rows, table = tables
    how: dict[str, Any] = {"label": "number", "features": FEATURES}
    settings = small("reg:squarederror")
    first = boost(table, settings, **how, name="prices", storage=storage)
    assert first.num_boosted_rounds == 8
    begun = Path(storage.uri("boosting/prices/model")).stat().st_mtime_ns
    again = boost(table, settings, **how, name="prices", storage=storage)
    assert Path(storage.uri("boosting/prices/model")).stat().st_mtime_ns == begun
    assert again.booster.get_dump() == first.booster.get_dump()

    with pytest.raises(DataError, match=r"other settings or data: max_depth"):
        boost(table, small("reg:squarederror", max_depth=4), **how, name="prices", storage=storage)
    shifted = table_of(rows.assign(a=rows["a"] + 1))
    with pytest.raises(DataError, match=r"other settings or data: table"):
        boost(shifted, settings, **how, name="prices", storage=storage)
