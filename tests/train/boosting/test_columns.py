"""Columns as numbers, and what is refused before trees are grown."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.utils.class_weight import compute_class_weight

from raysys.errors import DataError
from raysys.train.boosting._columns import Coding, Columns, runs_of
from raysys.train.boosting._survey import weights_of

CODING = Coding(("size", "carrier", "month"), {"carrier": ["AA", "UA"], "month": [1, 6, 12]})


def test_a_batch_becomes_numbers_in_the_order_of_the_features() -> None:
    rows = {"month": [12, 1, 6], "carrier": ["UA", "AA", None], "size": [1, 2, 3], "more": [0] * 3}
    wanted = [[1, 1, 2], [2, 0, 0], [3, np.nan, 1]]
    np.testing.assert_array_equal(CODING.matrix(rows), np.array(wanted, np.float32))


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
def test_categories_that_training_did_not_meet_are_missing_values(carrier: object) -> None:
    rows = {"size": [1.0, np.nan, 3.0], "carrier": carrier, "month": np.array([1, 7, 12], np.int8)}
    wanted = np.array([[1, 1, 0], [np.nan, np.nan, np.nan], [3, np.nan, 2]], np.float32)
    np.testing.assert_array_equal(CODING.matrix(rows), wanted)


def test_a_float_column_keeps_what_is_missing_and_a_boolean_is_0_or_1() -> None:
    coding = Coding(("a", "b"), {})
    rows = pa.table({"a": pa.array([1.5, None, np.nan]), "b": pa.array([True, None, False])})
    wanted = np.array([[1.5, 1], [np.nan, np.nan], [np.nan, 0]], np.float32)
    np.testing.assert_array_equal(coding.matrix(rows), wanted)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"size": [1]}, r"\['carrier', 'month'\] are missing"),
        ({"size": [1, 2], "carrier": ["UA"], "month": [1]}, "'carrier' has 1 rows"),
        ({"size": ["1"], "carrier": ["UA"], "month": [1]}, "'size' does not hold numbers"),
        ({"size": [1], "carrier": ["UA"], "month": ["x"]}, "'month' does not hold categories"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(rows: dict[str, list[object]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        CODING.matrix(rows)


SCHEMA = pa.schema(
    {
        "x": pa.float64(), "code": pa.int32(), "text": pa.string(), "at": pa.timestamp("us"),
        "y": pa.int8(), "g": pa.int64(), "w": pa.float32(),
    }
)  # fmt: skip


def test_text_is_a_category_and_integers_if_they_are_declared() -> None:
    found = Columns.of(
        SCHEMA, "binary:logistic",
        label="y", weight="w", features=["x", "code", "text", "g"], categorical=["code"],
    )  # fmt: skip
    assert found.categorical == ("code", "text")
    assert found.used == ["x", "code", "text", "g", "y", "w"]


def test_without_features_all_other_columns_are() -> None:
    schema = SCHEMA.remove(SCHEMA.get_field_index("at"))
    found = Columns.of(schema, "rank:ndcg", label="y", group="g")
    assert found.features == ("x", "code", "text", "w")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"label": "z"}, "'label': 'z'.*no such column"),
        ({"label": "y"}, "types that trees cannot use.*'at': 'timestamp"),
        ({"label": "y", "features": ["x", "y"]}, r"\['y'\].*play another part"),
        ({"label": "y", "features": ["x"], "categorical": ["code"]}, "not among the features"),
        ({"label": "y", "features": ["x"], "categorical": ["x"]}, "cannot use.*'x': 'double'"),
        ({"label": "y", "features": ["x"], "group": "g"}, "no other objective takes one"),
    ],
)
def test_columns_that_do_not_fit_are_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Columns.of(SCHEMA, "reg:squarederror", **asked)


def test_ranking_needs_a_group_and_takes_no_weights() -> None:
    with pytest.raises(DataError, match="ranking needs the column"):
        Columns.of(SCHEMA, "rank:ndcg", label="y", features=["x"])
    with pytest.raises(DataError, match="ranking takes no weights"):
        Columns.of(SCHEMA, "rank:ndcg", label="y", group="g", weight="w", features=["x"])


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = np.repeat(["a", "b", "c"], [5, 1, 3])
    wanted = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=labels)
    assert weights_of({"a": 5, "b": 1, "c": 3}, "balanced") == pytest.approx(wanted.tolist())


@pytest.mark.parametrize("given", [{0: 1.0}, {0: 1.0, 1: -1.0}, {0: 1.0, 1: 2.0, 2: 1.0}])
def test_given_weights_must_be_those_of_the_classes(given: dict[int, float]) -> None:
    with pytest.raises(DataError, match=r"each of the classes \[0, 1\]"):
        weights_of({0: 4, 1: 2}, given)


@pytest.mark.parametrize(
    ("group", "starts"),
    [
        ([3, 3, 1, 1, 1, 3], [0, 2, 5]),
        (["b", "b", "a"], [0, 2]),
        ([], []),
        ([None, None, 1], [0, 2]),
    ],
)
def test_groups_begin_where_the_value_changes(group: list[object], starts: list[int]) -> None:
    assert runs_of(pa.chunked_array([pa.array(group)])).tolist() == starts
