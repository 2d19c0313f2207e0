import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    StandardScaler,
)

from raysys.features import Binned, Calendar, Cyclic, Numeric
from tests.features.local import bulk, fit


def _skewed(rows: int = 500) -> np.ndarray:
    made = np.random.default_rng(0)
    values = np.exp(made.normal(size=rows) * 2)
    values[made.random(rows) < 0.2] = np.nan
    return values


@pytest.mark.parametrize("impute", ["mean", "median", 3.0])
@pytest.mark.parametrize("scale", ["standard", "minmax"])
@pytest.mark.parametrize("log", [True, False])
def test_numeric_is_the_pipeline_of_scikit_learn(impute: Any, scale: Any, log: bool) -> None:
    values = _skewed()
    how = {"strategy": impute} if isinstance(impute, str) else {
        "strategy": "constant", "fill_value": impute
    }  # fmt: skip
    peer = make_pipeline(
        SimpleImputer(**how),
        FunctionTransformer(np.log1p if log else None),
        StandardScaler() if scale == "standard" else MinMaxScaler(),
    )
    expected = peer.fit_transform(values[:, None])[:, 0]
    made = bulk(
        fit({"x": values}, Numeric(["x"], impute=impute, log=log, scale=scale)), {"x": values}
    )
    np.testing.assert_allclose(made["x"], expected.astype(np.float32), rtol=2e-6, atol=1e-7)
    np.testing.assert_array_equal(made["x_missing"], np.isnan(values))


def test_the_logarithm_is_odd_and_infinities_are_missing() -> None:
    rows = {"x": [-np.e + 1, 0.0, np.e - 1, np.inf, -np.inf]}
    made = bulk(fit(rows, Numeric(["x"], impute=None, log=True)), rows)
    np.testing.assert_allclose(made["x"], [-1, 0, 1, np.nan, np.nan], rtol=1e-6)
    assert made["x_missing"].tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("scale", ["standard", "minmax"])
def test_a_constant_or_empty_column_becomes_zero(scale: Any) -> None:
    rows = {"same": [0.1] * 7, "none": pa.nulls(7)}
    made = bulk(fit(rows, Numeric(["same", "none"], scale=scale, indicator=False)), rows)
    assert made["same"].tolist() == [0.0] * 7
    assert made["none"].tolist() == [0.0] * 7


def test_without_imputation_only_what_is_there_is_scaled() -> None:
    values = _skewed()
    made = bulk(
        fit({"x": values}, Numeric(["x"], impute=None, scale="standard", indicator=False)),
        {"x": values},
    )
    expected = StandardScaler().fit_transform(values[:, None])[:, 0]
    np.testing.assert_allclose(made["x"], expected, rtol=2e-6)


@pytest.mark.filterwarnings("ignore:Bins whose width")
@pytest.mark.parametrize("by", ["quantile", "uniform"])
def test_bins_are_those_of_scikit_learn(by: Any) -> None:
    made = np.random.default_rng(0)
    # Ties, so that some edges coincide; values outside the range come later.
    values = np.concatenate([np.zeros(300), made.normal(size=300), np.round(made.normal(size=300))])
    peer = KBinsDiscretizer(8, encode="onehot-dense", strategy=by, quantile_method="linear")
    peer.fit(values[:, None])
    new = np.concatenate([values, [-99.0, 99.0], np.array(peer.bin_edges_[0])])
    found = bulk(fit({"x": values}, Binned(["x"], bins=8, by=by)), {"x": new})
    np.testing.assert_array_equal(np.stack(list(found.values()), 1), peer.transform(new[:, None]))


def test_a_missing_value_is_in_no_bin() -> None:
    rows = {"x": [1.0, 2.0, 3.0, None], "none": [None] * 4}
    made = bulk(fit(rows, Binned(["x", "none"], bins=3)), rows)
    stacked = np.stack([made["x_bin=0"], made["x_bin=1"], made["x_bin=2"]], 1)
    np.testing.assert_array_equal(stacked, [*np.eye(3), [0, 0, 0]])
    assert made["none_bin=0"].tolist() == [0] * 4
    assert bulk(fit(rows, Binned(["x"], bins=3, encode="ordinal")), rows)["x_bin"].tolist() == [
        0, 1, 2, -1
    ]  # fmt: skip


def test_cyclic_values_come_round() -> None:
    hours = [0.0, 6.0, 12.0, 18.0, 24.0, -6.0, None]
    made = bulk(fit({"h": hours}, Cyclic(["h"], period=24, harmonics=2)), {"h": hours})
    assert list(made) == ["h_sin1", "h_sin2", "h_cos1", "h_cos2"]
    np.testing.assert_allclose(made["h_sin1"], [0, 1, 0, -1, 0, -1, 0], atol=1e-7)
    np.testing.assert_allclose(made["h_cos1"], [1, 0, -1, 0, 1, 0, 0], atol=1e-7)
    np.testing.assert_allclose(made["h_sin2"], [0, 0, 0, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(made["h_cos2"], [1, -1, 1, -1, 1, -1, 0], atol=1e-7)


def test_calendar_fields_are_those_of_pandas() -> None:
    made = np.random.default_rng(0)
    seconds = made.integers(-8_000_000_000, 8_000_000_000, 3000)  # 1716 to 2223
    edges = pd.to_datetime(
        [
            "1969-12-31 23:59:59",
            "1970-01-01",
            "2000-02-29",
            "2016-01-03",
            "2018-12-31",
            "1900-03-01",
        ],
        format="ISO8601",
    )
    whens = pd.DatetimeIndex([*pd.to_datetime(seconds, unit="s"), *edges])
    fields = ["year", "quarter", "month", "week", "day", "day_of_year", "weekday", "weekend",
              "hour", "minute", "epoch_day"]  # fmt: skip
    rows = pa.table({"t": pa.array([*whens.to_pydatetime(), None])})
    found = bulk(fit(rows, Calendar(["t"], fields=fields)), rows)
    for field in fields:
        expected = {
            "week": whens.isocalendar().week,
            "weekend": whens.weekday >= 5,
            "epoch_day": (whens.normalize() - pd.Timestamp(0)).days,
        }.get(field, getattr(whens, field, None))
        np.testing.assert_array_equal(found[f"t_{field}"][:-1], np.asarray(expected, float), field)
        assert found[f"t_{field}"][-1] == -1


def test_calendar_of_several_columns() -> None:
    rows = {"a": [dt.datetime(2013, 2, 1, 5)], "b": [dt.datetime(2014, 3, 2, 6)]}
    made = bulk(fit(rows, Calendar(["a", "b"], fields=["hour", "month"])), rows)
    assert {name: column.tolist() for name, column in made.items()} == {
        "a_hour": [5], "a_month": [2], "b_hour": [6], "b_month": [3],
    }  # fmt: skip
