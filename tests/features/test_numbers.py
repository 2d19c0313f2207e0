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
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(size=rows) * 2)
    values[rng.random(rows) < 0.2] = np.nan
    return values


@pytest.mark.parametrize("impute", ["mean", "median", 3.0])
@pytest.mark.parametrize("scale", ["standard", "minmax"])
@pytest.mark.parametrize("log", [True, False])
def test_numeric_equals_a_pipeline_of_scikit_learn(impute: Any, scale: Any, log: bool) -> None:
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
    features = bulk(
        fit({"x": values}, Numeric(["x"], impute=impute, log=log, scale=scale)), {"x": values}
    )
    np.testing.assert_allclose(features["x"], expected.astype(np.float32), rtol=2e-6, atol=1e-7)
    np.testing.assert_array_equal(features["x_missing"], np.isnan(values))


def test_the_logarithm_is_odd_and_infinities_are_missing() -> None:
    rows = {"x": [-np.e + 1, 0.0, np.e - 1, np.inf, -np.inf]}
    features = bulk(fit(rows, Numeric(["x"], impute=None, log=True)), rows)
    np.testing.assert_allclose(features["x"], [-1, 0, 1, np.nan, np.nan], rtol=1e-6)
    assert features["x_missing"].tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("scale", ["standard", "minmax"])
def test_a_constant_or_empty_column_becomes_zero(scale: Any) -> None:
    rows = {"same": [0.1] * 7, "none": pa.nulls(7)}
    features = bulk(fit(rows, Numeric(["same", "none"], scale=scale, add_indicator=False)), rows)
    assert features["same"].tolist() == [0.0] * 7
    assert features["none"].tolist() == [0.0] * 7


def test_without_imputation_the_present_values_are_scaled() -> None:
    values = _skewed()
    features = bulk(
        fit({"x": values}, Numeric(["x"], impute=None, scale="standard", add_indicator=False)),
        {"x": values},
    )
    expected = StandardScaler().fit_transform(values[:, None])[:, 0]
    np.testing.assert_allclose(features["x"], expected, rtol=2e-6)


@pytest.mark.filterwarnings("ignore:Bins whose width")
@pytest.mark.parametrize("strategy", ["quantile", "uniform"])
def test_bins_equal_scikit_learn(strategy: Any) -> None:
    rng = np.random.default_rng(0)
    # Ties, so that some edges coincide; values outside the range come later.
    values = np.concatenate([np.zeros(300), rng.normal(size=300), np.round(rng.normal(size=300))])
    peer = KBinsDiscretizer(8, encode="onehot-dense", strategy=strategy, quantile_method="linear")
    peer.fit(values[:, None])
    new = np.concatenate([values, [-99.0, 99.0], np.array(peer.bin_edges_[0])])
    features = bulk(fit({"x": values}, Binned(["x"], n_bins=8, strategy=strategy)), {"x": new})
    onehot = np.stack(list(features.values()), 1)
    np.testing.assert_array_equal(onehot, peer.transform(new[:, None]))


def test_a_missing_value_is_in_no_bin() -> None:
    rows = {"x": [1.0, 2.0, 3.0, None], "none": [None] * 4}
    features = bulk(fit(rows, Binned(["x", "none"], n_bins=3)), rows)
    stacked = np.stack([features["x_bin=0"], features["x_bin=1"], features["x_bin=2"]], 1)
    np.testing.assert_array_equal(stacked, [*np.eye(3), [0, 0, 0]])
    assert features["none_bin=0"].tolist() == [0] * 4
    assert bulk(fit(rows, Binned(["x"], n_bins=3, encode="ordinal")), rows)["x_bin"].tolist() == [
        0, 1, 2, -1
    ]  # fmt: skip


def test_cyclic_values_repeat() -> None:
    hours = [0.0, 6.0, 12.0, 18.0, 24.0, -6.0, None]
    features = bulk(fit({"h": hours}, Cyclic(["h"], period=24, harmonics=2)), {"h": hours})
    assert list(features) == ["h_sin1", "h_sin2", "h_cos1", "h_cos2"]
    np.testing.assert_allclose(features["h_sin1"], [0, 1, 0, -1, 0, -1, 0], atol=1e-7)
    np.testing.assert_allclose(features["h_cos1"], [1, 0, -1, 0, 1, 0, 0], atol=1e-7)
    np.testing.assert_allclose(features["h_sin2"], [0, 0, 0, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(features["h_cos2"], [1, -1, 1, -1, 1, -1, 0], atol=1e-7)


def test_calendar_fields_equal_pandas() -> None:
    rng = np.random.default_rng(0)
    seconds = rng.integers(-8_000_000_000, 8_000_000_000, 3000)  # 1716 to 2223
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
    features = bulk(fit(rows, Calendar(["t"], fields=fields)), rows)
    for field in fields:
        expected = {
            "week": whens.isocalendar().week,
            "weekend": whens.weekday >= 5,
            "epoch_day": (whens.normalize() - pd.Timestamp(0)).days,
        }.get(field, getattr(whens, field, None))
        values = features[f"t_{field}"]
        np.testing.assert_array_equal(values[:-1], np.asarray(expected, float), field)
        assert values[-1] == -1


def test_calendar_of_several_columns() -> None:
    rows = {"a": [dt.datetime(2013, 2, 1, 5)], "b": [dt.datetime(2014, 3, 2, 6)]}
    features = bulk(fit(rows, Calendar(["a", "b"], fields=["hour", "month"])), rows)
    assert {name: column.tolist() for name, column in features.items()} == {
        "a_hour": [5], "a_month": [2], "b_hour": [6], "b_month": [3],
    }  # fmt: skip
