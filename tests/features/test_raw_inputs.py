import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raysys.errors import DataError
from raysys.features import _raw_inputs as _inputs
from raysys.features._raw_inputs import NO_TIME, CodedColumn

MOMENT = dt.datetime(2013, 5, 17, 6, 30, 0, 250)
MICROS = int(pd.Timestamp(MOMENT).value // 1000)


def _decoded(coded: CodedColumn) -> list[str | None]:
    return [None if code < 0 else coded.values[code] for code in coded.codes]


@pytest.mark.parametrize(
    "column",
    [
        [1, 2.5, None, True],
        np.array([1, 2.5, np.nan, 1]),
        np.array([1, 2.5, None, np.bool_(True)], object),
        [Decimal(1), np.float32(2.5), np.nan, np.int8(1)],
        pa.array([1, 2.5, None, 1]),
        pa.array([1, 2.5, None, 1], pa.float32()),
        pa.array([Decimal("1.0"), Decimal("2.5"), None, Decimal("1.0")]),
        pa.chunked_array([[1.0, 2.5], [None, 1.0]]),
    ],
)
def test_numbers(column: Any) -> None:
    np.testing.assert_array_equal(_inputs.numbers("x", column), [1, 2.5, np.nan, 1])


def test_numbers_of_booleans_and_of_no_type() -> None:
    assert _inputs.numbers("x", pa.array([True, False, None])).tolist()[:2] == [1, 0]
    assert np.isnan(_inputs.numbers("x", pa.nulls(3))).all()


@pytest.mark.parametrize("repeat", [1, 40])  # one by one, and dictionary-encoded
@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (["a", None, "", "a"], ["a", None, "", "a"]),
        ([5, None, -3, 5], ["5", None, "-3", "5"]),
        ([5.0, float("nan"), -0.0, 2.0**60], ["5", None, "0", str(2**60)]),
        ([True, 1, "1", None], ["true", "1", "1", None]),
        ([2**70, "x"], [str(2**70), "x"]),
    ],
)
def test_categories(raw: list[Any], expected: list[str | None], repeat: int) -> None:
    assert _decoded(_inputs.categories("c", raw * repeat)) == expected * repeat
    objects = np.array(raw * repeat, object)
    assert _decoded(_inputs.categories("c", objects)) == expected * repeat
    assert [_inputs.category_of("c", value) for value in raw] == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_categories_of_arrow_text(kind: pa.DataType) -> None:
    column = pa.chunked_array([pa.array(["a", None], kind), pa.array(["b", "a"], kind)])
    assert _decoded(_inputs.categories("c", column)) == ["a", None, "b", "a"]


def test_categories_of_arrow_types() -> None:
    encoded = pa.array(["a", None, "b"]).dictionary_encode()
    assert _decoded(_inputs.categories("c", encoded)) == ["a", None, "b"]
    assert _decoded(_inputs.categories("c", pa.nulls(2))) == [None, None]
    assert _decoded(_inputs.categories("c", pa.array([True, None]))) == ["true", None]


@pytest.mark.parametrize(
    "column",
    [
        [MOMENT, None],
        [MOMENT.isoformat(), None],
        [MOMENT.isoformat(), ""],
        ["2013-05-17T08:30:00.000250+02:00", None],
        [MOMENT.replace(tzinfo=dt.UTC), pd.NaT],
        [pd.Timestamp(MOMENT), float("nan")],
        np.array([MOMENT, "NaT"], "datetime64[us]"),
        np.array([MOMENT, "NaT"], "datetime64[us]").astype("datetime64[ns]"),
        [np.datetime64(MOMENT), np.datetime64("NaT")],
        pa.array([MOMENT, None], pa.timestamp("us")),
        pa.array([MOMENT, None], pa.timestamp("ns", "Asia/Tokyo")),
        pa.array([MOMENT.isoformat(), None]),
        pa.array([MOMENT.isoformat(), ""]),
    ],
)
def test_times(column: Any) -> None:
    assert _inputs.times("t", column).tolist() == [MICROS, NO_TIME]
    if not isinstance(column, pa.Array):
        assert [_inputs.time_of("t", value) for value in column] == [MICROS, NO_TIME]


def test_times_before_1970_and_dates() -> None:
    past = np.array([-1, -1_000_000_001], "datetime64[ns]")
    expected = [-1, -1_000_001]  # rounded down
    assert _inputs.times("t", past).tolist() == expected
    assert _inputs.times("t", pa.array(past)).tolist() == expected
    assert [_inputs.time_of("t", value) for value in past] == expected
    day = dt.date(1969, 12, 30)
    for column in ([day], pa.array([day]), pa.array([day], pa.date64()), np.array([day], "M8[D]")):
        assert _inputs.times("t", column).tolist() == [-2 * 86_400_000_000]
    seconds = pa.array([dt.datetime(1969, 12, 31, 23, 59, 59)], pa.timestamp("s"))
    assert _inputs.times("t", seconds).tolist() == [-1_000_000]


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (_inputs.numbers, "12", r"f: '12' \(str\) is not a valid number"),
        (_inputs.numbers, MOMENT, "f: datetime.datetime.* is not a valid number"),
        (_inputs.numbers, 10**400, "f: 1000.*is not a valid number"),
        (_inputs.categories, 1.5, r"f: 1.5 \(float\) is not a valid category"),
        (_inputs.categories, b"a", r"f: b'a' \(bytes\) is not a valid category"),
        (_inputs.categories, MOMENT, "f: datetime.datetime.* is not a valid category"),
        (_inputs.times, 1368772200, r"f: 1368772200 \(int\) is not a valid time"),
        (_inputs.times, "yesterday", r"f: 'yesterday' \(str\) is not a valid ISO 8601 time"),
        (_inputs.texts, 7, r"f: 7 \(int\) is not a valid text"),
    ],
)
def test_a_wrong_type_names_field_and_value(read: Any, value: Any, message: str) -> None:
    for column in ([value], [value] * 100):
        with pytest.raises(DataError, match=message):
            read("f", column)
    if not isinstance(value, int) or value < 2**63:
        with pytest.raises(DataError, match=message.replace("b'a'", ".*")):
            read("f", pa.array([value]))
