"""A request gets the same features as a row of a Table, to the last bit."""

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import DataError
from raysys.features import Numeric, OneHot
from raysys.features import _fitted_featurizer as _fitted
from raysys.serve import Array, Graph
from tests.features.examples import ALL, rows
from tests.features.local import bulk, fit

FITTED = fit(rows(), *ALL)
_NUMBERS = st.floats() | st.floats(-1e4, 1e4) | st.just(0.0)
_TEXT = st.text(max_size=12)
VALUES: dict[str, Any] = {
    "distance": _NUMBERS,
    "seats": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 400),
    "delay": _NUMBERS | st.sampled_from(FITTED.states[2][0]["edges"].tolist()),
    "hour": st.integers(-5, 30),
    "carrier": st.sampled_from(["UA", "DL", "AA", "B6", "9E"]) | _TEXT,
    "tail": _TEXT,
    "origin": st.sampled_from(["JFK", "LGA", "EWR"]) | _TEXT,
    "when": st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31)),
    "title": _TEXT | st.lists(st.sampled_from(["new", "YORK", "İ", "ß,"])).map(" ".join),
}
_SCHEMA = pa.schema([rows().schema.field(name) for name in VALUES])
REQUESTS = st.lists(
    st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()}),
    min_size=1,
    max_size=20,
)


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    return first.dtype == second.dtype == np.float32 and first.tobytes() == second.tobytes()


@settings(max_examples=150, deadline=None)
@given(REQUESTS)
def test_requests_get_the_features_of_the_bulk(requests: list[dict[str, Any]]) -> None:
    single = np.stack([FITTED.transform_one(request, ignore_unknown=True) for request in requests])
    table = pa.Table.from_pylist(requests, _SCHEMA)
    assert _same(np.stack(list(bulk(FITTED, table).values()), 1), single)
    columns = {name: [request[name] for request in requests] for name in VALUES}
    assert _same(FITTED.transform_batch(columns), single)
    repeated = FITTED.transform_batch({name: values * 70 for name, values in columns.items()})
    assert _same(repeated, np.tile(single, (70, 1)))


def test_many_rows_get_the_features_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fitted, "_ROWS_AT_ONCE", 300)
    many = rows(2000)
    table = np.stack(list(bulk(FITTED, many).values()), 1)
    single = np.stack(
        [FITTED.transform_one(request, ignore_unknown=True) for request in many.to_pylist()]
    )
    assert np.isfinite(single).mean() > 0.97  # some values are neither present nor imputed
    assert _same(np.ascontiguousarray(table), single)
    for count in (1, 2, 8, 9, 65, 1000):
        numpy_columns = {
            name: many[name].slice(0, count).to_pandas().to_numpy() for name in FITTED.inputs
        }
        features = FITTED.transform_batch(numpy_columns)
        assert features.flags.c_contiguous
        assert _same(features, single[:count])
    arrow = {name: many[name] for name in FITTED.inputs}
    assert _same(FITTED.transform_batch(arrow), single)
    none = FITTED.transform_batch({name: column[:0] for name, column in arrow.items()})
    assert none.shape == (0, len(FITTED.feature_names))


def test_an_absent_field_equals_a_null() -> None:
    nulls = FITTED.transform_one(dict.fromkeys(FITTED.inputs))
    assert _same(FITTED.transform_one({}), nulls)
    assert _same(FITTED.transform_one({"seats": float("nan")}), nulls)
    for count in (1, 100):
        features = FITTED.transform_batch({"seats": np.full(count, np.nan)})
        assert _same(features, np.tile(nulls, (count, 1)))


def test_a_node_of_a_serving_graph_computes_features() -> None:
    fitted = fit(rows(), ALL[0], OneHot(["carrier"]), ALL[-2])

    def features(
        distance: np.ndarray, seats: np.ndarray, carrier: np.ndarray, when: np.ndarray
    ) -> np.ndarray:
        return fitted.transform_batch(
            {"distance": distance, "seats": seats, "carrier": carrier, "when": when}
        )

    inputs = {"distance": Array("float64"), "seats": Array("int64"), "carrier": Array("str"),
              "when": Array("str")}  # fmt: skip
    graph = Graph(inputs=inputs, nodes={"features": features}, output="features")
    columns = {
        "distance": [733.0, 90.5],
        "seats": [180, 20],
        "carrier": ["UA", "unseen"],
        "when": ["2013-05-01T12:30:00", ""],
    }
    requests = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    assert _same(graph(columns), np.stack([fitted.transform_one(request) for request in requests]))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seats", "many", r"seats: 'many' \(str\) is not a valid number"),
        ("carrier", 1.5, r"carrier: 1.5 \(float\) is not a valid category"),
        ("when", 17, r"when: 17 \(int\) is not a valid time"),
        ("title", ["a"], r"title: \['a'\] \(list\) is not a valid text"),
    ],
)
def test_a_wrong_type_names_the_field_and_the_value(field: str, value: Any, message: str) -> None:
    for transform in (
        lambda: FITTED.transform_one({field: value}),
        lambda: FITTED.transform_batch({field: [value]}),
        lambda: FITTED.transform_batch({field: [value] * 100}),
    ):
        with pytest.raises(DataError, match=message):
            transform()


def test_an_invalid_batch_is_refused() -> None:
    fitted = fit({"x": [1.0], "c": ["a"]}, Numeric(["x"]), OneHot(["c"]))
    with pytest.raises(DataError, match="of the batch is an input; given: y; inputs: x, c"):
        fitted.transform_batch({"y": [1]}, ignore_unknown=True)
    with pytest.raises(DataError, match="x has 2 values and c 1: columns of a batch must have"):
        fitted.transform_batch({"x": [1, 2], "c": ["a"]})


def test_a_misspelt_field_is_refused_with_the_nearest_name() -> None:
    known, other = {"seats": 180, "distance": 90.5}, {"seats": 180, "distanse": 90.5, "x": 1}
    message = r"unknown fields: 'distanse' \(did you mean 'distance'\?\), 'x'; inputs: distance"
    columns, others = ({n: [v] for n, v in fields.items()} for fields in (known, other))
    for transform, fields, wrong in (
        (FITTED.transform_one, known, other), (FITTED.transform_batch, columns, others)
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            transform(wrong)
        lenient = transform(wrong, ignore_unknown=True)
        fields.pop("distance")
        assert _same(lenient, transform(fields))


def test_missing_values_of_pandas_are_missing() -> None:
    nulls = FITTED.transform_one({})
    for missing in (pd.NA, pd.NaT, None, float("nan")):
        assert _same(FITTED.transform_one(dict.fromkeys(FITTED.inputs, missing)), nulls)
    batch = {name: pd.array([pd.NA] * 3, dtype=object) for name in FITTED.inputs}
    assert _same(FITTED.transform_batch(batch), np.tile(nulls, (3, 1)))
