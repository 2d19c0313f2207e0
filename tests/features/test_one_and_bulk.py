"""A request is answered as a Table is, to the last bit."""

import datetime as dt
from typing import Any

import numpy as np
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
def test_one_request_is_answered_as_the_bulk(requests: list[dict[str, Any]]) -> None:
    one = np.stack([FITTED.one(request) for request in requests])
    table = pa.Table.from_pylist(requests, _SCHEMA)
    assert _same(np.stack(list(bulk(FITTED, table).values()), 1), one)
    columns = {name: [request[name] for request in requests] for name in VALUES}
    assert _same(FITTED.matrix(columns), one)
    repeated = FITTED.matrix({name: values * 70 for name, values in columns.items()})
    assert _same(repeated, np.tile(one, (70, 1)))


def test_the_bulk_is_answered_as_one_request_over_many_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_fitted, "_AT_ONCE", 300)
    many = rows(2000)
    table = np.stack(list(bulk(FITTED, many).values()), 1)
    one = np.stack([FITTED.one(request) for request in many.to_pylist()])
    assert np.isfinite(one).mean() > 0.97  # of what is not imputed some is missing
    assert _same(np.ascontiguousarray(table), one)
    for count in (1, 2, 8, 9, 65, 1000):
        numpy_columns = {
            name: many[name].slice(0, count).to_pandas().to_numpy() for name in FITTED.inputs
        }
        found = FITTED.matrix(numpy_columns)
        assert found.flags.c_contiguous
        assert _same(found, one[:count])
    arrow = {name: many[name] for name in FITTED.inputs}
    assert _same(FITTED.matrix(arrow), one)
    none = FITTED.matrix({name: column[:0] for name, column in arrow.items()})
    assert none.shape == (0, len(FITTED.names))


def test_a_missing_field_and_a_null_are_alike() -> None:
    nulls = FITTED.one(dict.fromkeys(FITTED.inputs))
    assert _same(FITTED.one({}), nulls)
    assert _same(FITTED.one({"seats": float("nan"), "no_input": "x"}), nulls)
    for count in (1, 100):
        found = FITTED.matrix({"seats": np.full(count, np.nan), "no_input": ["x"] * count})
        assert _same(found, np.tile(nulls, (count, 1)))


def test_a_node_of_a_serving_graph_makes_a_matrix_of_its_columns() -> None:
    fitted = fit(rows(), ALL[0], OneHot(["carrier"]), ALL[-2])

    def features(
        distance: np.ndarray, seats: np.ndarray, carrier: np.ndarray, when: np.ndarray
    ) -> np.ndarray:
        return fitted.matrix(
            {"distance": distance, "seats": seats, "carrier": carrier, "when": when}
        )

    inputs = {"distance": Array("float64"), "seats": Array("int64"), "carrier": Array("str"),
              "when": Array("str")}  # fmt: skip
    graph = Graph(inputs=inputs, nodes={"features": features}, output="features")
    given = {
        "distance": [733.0, 90.5],
        "seats": [180, 20],
        "carrier": ["UA", "unseen"],
        "when": ["2013-05-01T12:30:00", ""],
    }
    requests = [
        dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)
    ]
    assert _same(graph(given), np.stack([fitted.one(request) for request in requests]))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seats", "many", r"seats: 'many' \(str\) is no number"),
        ("carrier", 1.5, r"carrier: 1.5 \(float\) is no category"),
        ("when", 17, r"when: 17 \(int\) is no time"),
        ("title", ["a"], r"title: \['a'\] \(list\) is no text"),
    ],
)
def test_a_wrong_type_names_the_field_and_the_value(field: str, value: Any, message: str) -> None:
    for ask in (
        lambda: FITTED.one({field: value}),
        lambda: FITTED.matrix({field: [value]}),
        lambda: FITTED.matrix({field: [value] * 100}),
    ):
        with pytest.raises(DataError, match=message):
            ask()


def test_a_batch_that_is_none_is_refused() -> None:
    fitted = fit({"x": [1.0], "c": ["a"]}, Numeric(["x"]), OneHot(["c"]))
    with pytest.raises(DataError, match="no column that is an input; given: y; inputs: x, c"):
        fitted.matrix({"y": [1]})
    with pytest.raises(DataError, match="x has 2 values and c 1: columns of a batch have one"):
        fitted.matrix({"x": [1, 2], "c": ["a"]})
