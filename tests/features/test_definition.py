from collections.abc import Callable

import pytest

from raysys.errors import DataError, SettingsError
from raysys.features import (
    Calendar,
    Crossed,
    Featurizer,
    Hashed,
    Numeric,
    OneHot,
    TargetEncoded,
    TextHashed,
)
from tests.features.local import fit


@pytest.mark.parametrize(
    ("define", "message"),
    [
        (lambda: Numeric(["x"], impute="mode"), "Numeric: impute.*given: 'mode'"),
        (lambda: Numeric(["x"], scaler="standard"), r"'scaler' \(did you mean 'scale'\?\)"),
        (lambda: Numeric([]), "Numeric: columns"),
        (lambda: Numeric(colums=["x"]), r"'colums' \(did you mean 'columns'\?\)"),
        (lambda: Hashed("tail", buckets=8), "columns: Input should be a valid tuple"),
        (lambda: Hashed(["tail"]), "buckets: Field required"),
        (lambda: Hashed(["tail"], buckets=1), "buckets.*greater than or equal to 2; given: 1"),
        (lambda: Crossed(["a"], buckets=8), "Crossed.*at least 2"),
        (lambda: Calendar(["t"], fields=["days"]), "fields.0.*given: 'days'"),
        (lambda: TargetEncoded(["c"], target="y", group="g", time="t"), "give one of them"),
        (lambda: TargetEncoded(["c"], target="y", delay_s=9), "give time= as well"),
        (lambda: Featurizer([]), "transforms"),
    ],
)
def test_an_invalid_definition_names_the_option(define: Callable[[], object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        define()


def test_a_definition_survives_json() -> None:
    featurizer = Featurizer(
        [Numeric(["x"], impute=None, log=True), TargetEncoded(["c"], target="y", time="t")]
    )
    assert Featurizer.model_validate_json(featurizer.model_dump_json()) == featurizer


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (Numeric(["y"]), "Numeric needs the column 'y'; the table has: x, c"),
        (TargetEncoded(["c"], target="late"), "TargetEncoded needs the column 'late'"),
        (TargetEncoded(["c"], target="x", group="person"), "needs the column 'person'"),
        (Numeric(["c"]), r"c: 'a' \(str\) is not a valid number"),
        (TargetEncoded(["x"], target="c"), "is not a valid number"),
    ],
)
def test_an_unfit_table_is_refused_with_the_column_named(transform: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit({"x": [1.0, 2.0], "c": ["a", "b"]}, transform)  # type: ignore[arg-type]


def test_two_kinds_may_hash_one_column() -> None:
    pair = Hashed(["c"], buckets=2), TextHashed(["c"], buckets=2)
    expected = ["c#0", "c#1", "c#0 (text_hashed)", "c#1 (text_hashed)"]
    assert list(fit({"c": ["a", "b"]}, *pair).feature_names) == expected


def test_two_features_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="two columns would be named 'c=a'"):
        fit({"c": ["a"]}, OneHot(["c"]), OneHot(["c"]))


def test_features_are_in_the_order_of_the_definition() -> None:
    fitted = fit(
        {"x": [1.0], "z": [2.0], "c": ["a"]},
        OneHot(["c"]),
        Numeric(["z"], add_indicator=False),
        Hashed(["c"], buckets=2, encode="ordinal"),
        Numeric(["x"], log=True),
    )
    names = ("c=a", "c_other", "c_missing", "z", "c_bucket", "x", "x_missing")
    assert fitted.feature_names == names
    request = {"x": 0.0, "z": 9.0, "c": "a"}
    bucket = fitted.transform_one(request)[4]
    assert fitted.transform_one(request).tolist() == [1, 0, 0, 9, bucket, 0, 0]
