"""Encoding of columns as numbers, and the checks of their roles and types."""

import numpy as np
import pyarrow as pa
import pytest
import xgboost
from sklearn.utils.class_weight import compute_class_weight

from raysys.errors import DataError
from raysys.train import BoostedModel
from raysys.train.boosting._feature_columns import FeatureColumns, FeatureEncoding, group_starts
from raysys.train.boosting._table_summary import weights_by_class

ENCODING = FeatureEncoding(
    ("size", "carrier", "month"), {"carrier": ["AA", "UA"], "month": [1, 6, 12]}
)


def test_a_batch_is_encoded_in_the_order_of_the_features() -> None:
    rows = {"month": [12, 1, 6], "carrier": ["UA", "AA", None], "size": [1, 2, 3], "more": [0] * 3}
    expected = [[1, 1, 2], [2, 0, 0], [3, np.nan, 1]]
    np.testing.assert_array_equal(ENCODING.matrix(rows), np.array(expected, np.float32))


@pytest.mark.parametrize(
    "carrier",
    [
        pa.array(["UA", "ZZ", None]),
        pa.array(["UA", "ZZ", None], pa.large_string()),
        pa.array(["UA", "ZZ", None]).dictionary_encode(),
        pa.chunked_array([["UA"], ["ZZ", None]]),
        np.array(["UA", "ZZ", None], object),
        ["UA", "ZZ", None],
    ],
    ids=["string", "large", "dictionary", "chunks", "numpy", "list"],
)
def test_unknown_categories_become_missing_values(carrier: object) -> None:
    rows = {"size": [1.0, np.nan, 3.0], "carrier": carrier, "month": np.array([1, 7, 12], np.int8)}
    expected = np.array([[1, 1, 0], [np.nan, np.nan, np.nan], [3, np.nan, 2]], np.float32)
    np.testing.assert_array_equal(ENCODING.matrix(rows), expected)


def test_missing_floats_stay_missing_and_booleans_become_0_or_1() -> None:
    encoding = FeatureEncoding(("a", "b"), {})
    rows = pa.table({"a": pa.array([1.5, None, np.nan]), "b": pa.array([True, None, False])})
    expected = np.array([[1.5, 1], [np.nan, np.nan], [np.nan, 0]], np.float32)
    np.testing.assert_array_equal(encoding.matrix(rows), expected)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"size": [1]}, r"\['carrier', 'month'\] are missing"),
        ({"size": [1, 2], "carrier": ["UA"], "month": [1]}, "'carrier' has 1 rows"),
        ({"size": ["1"], "carrier": ["UA"], "month": [1]}, "'size' does not hold numbers"),
        ({"size": [1], "carrier": ["UA"], "month": ["x"]}, "'month' does not hold categories"),
    ],
)
def test_invalid_batches_are_refused(rows: dict[str, list[object]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ENCODING.matrix(rows)


SCHEMA = pa.schema(
    {
        "x": pa.float64(), "code": pa.int32(), "text": pa.string(), "at": pa.timestamp("us"),
        "y": pa.int8(), "g": pa.int64(), "w": pa.float32(),
    }
)  # fmt: skip


def test_text_is_categorical_and_integers_if_declared() -> None:
    columns = FeatureColumns.of(
        SCHEMA, "binary:logistic",
        label="y", weight="w", features=["x", "code", "text", "g"], categorical=["code"],
    )  # fmt: skip
    assert columns.categorical == ("code", "text")
    assert columns.used == ["x", "code", "text", "g", "y", "w"]


def test_features_default_to_all_columns_without_a_role() -> None:
    schema = SCHEMA.remove(SCHEMA.get_field_index("at"))
    columns = FeatureColumns.of(schema, "rank:ndcg", label="y", group="g")
    assert columns.features == ("x", "code", "text", "w")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"label": "z"}, "no such column.*'label': 'z'"),
        ({"label": "y"}, "types that trees cannot use.*'at': 'timestamp"),
        ({"label": "y", "features": ["x", "y"]}, r"\['y'\].*columns with a role"),
        ({"label": "y", "features": ["x"], "categorical": ["code"]}, "not among the features"),
        ({"label": "y", "features": ["x"], "categorical": ["x"]}, "cannot use.*'x': 'double'"),
        ({"label": "y", "features": ["x"], "group": "g"}, "other objectives take none"),
    ],
)
def test_invalid_columns_are_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        FeatureColumns.of(SCHEMA, "reg:squarederror", **asked)


def test_ranking_requires_a_group_and_takes_no_weights() -> None:
    with pytest.raises(DataError, match="ranking requires the column"):
        FeatureColumns.of(SCHEMA, "rank:ndcg", label="y", features=["x"])
    with pytest.raises(DataError, match="ranking takes no row weights"):
        FeatureColumns.of(SCHEMA, "rank:ndcg", label="y", group="g", weight="w", features=["x"])


def test_balanced_weights_match_scikit_learn() -> None:
    labels = np.repeat(["a", "b", "c"], [5, 1, 3])
    expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=labels)
    assert weights_by_class({"a": 5, "b": 1, "c": 3}, "balanced") == pytest.approx(
        expected.tolist()
    )


@pytest.mark.parametrize("weights", [{0: 1.0}, {0: 1.0, 1: -1.0}, {0: 1.0, 1: 2.0, 2: 1.0}])
def test_class_weights_must_cover_the_classes(weights: dict[int, float]) -> None:
    with pytest.raises(DataError, match=r"each of the classes \[0, 1\]"):
        weights_by_class({0: 4, 1: 2}, weights)


@pytest.mark.parametrize(
    ("group", "starts"),
    [
        ([3, 3, 1, 1, 1, 3], [0, 2, 5]),
        (["b", "b", "a"], [0, 2]),
        ([], []),
        ([None, None, 1], [0, 2]),
    ],
)
def test_a_group_starts_where_the_value_changes(group: list[object], starts: list[int]) -> None:
    assert group_starts(pa.chunked_array([pa.array(group)])).tolist() == starts


def test_any_name_of_a_feature_has_one_in_the_booster() -> None:
    names = ("a[0]", "a(0)", "a(0)_", "b<1", "b~1", "plain")
    inner = FeatureEncoding(names, {}).booster_names
    assert inner[-1] == "plain"
    assert len(set(inner)) == len(names)
    assert inner[1:3] == ["a(0)", "a(0)_"]  # names that XGBoost accepts stay
    values = np.random.default_rng(0).normal(size=(200, 6))
    rows = xgboost.DMatrix(values, values[:, 0], feature_names=inner)
    booster = xgboost.train({}, rows, 4)
    model = BoostedModel(booster, FeatureEncoding(names, {}), "reg:squarederror")
    assert set(model.feature_importances) == set(names)
    assert model.feature_importances["a[0]"] > 0.9
