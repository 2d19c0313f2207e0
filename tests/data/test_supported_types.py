"""Arrow's types that become one that a Table holds, and those that are refused."""

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raysys.data._supported_types import supported
from raysys.errors import DataError

UTC = pa.timestamp("us", "UTC")
MOMENT = pa.array([dt.datetime(2020, 1, 1, 12, tzinfo=dt.UTC)], UTC)
PRICE = Decimal("1.50")


def _union() -> pa.Array:
    kinds = pa.array([0, 1], pa.int8())
    return pa.UnionArray.from_sparse(kinds, [pa.array([1, 2]), pa.array(["a", "b"])])


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (MOMENT.cast(pa.timestamp("us", "+05:30")), UTC),
        (MOMENT.cast(pa.timestamp("us", "-03:30")), UTC),
        (MOMENT.cast(pa.timestamp("us", "-03:00")), UTC),
        (MOMENT.cast(pa.timestamp("us", "Europe/Berlin")), pa.timestamp("us", "Europe/Berlin")),
        (MOMENT.cast(pa.timestamp("us", "+05:30")).dictionary_encode(), UTC),
        (pa.array([PRICE], pa.decimal256(50, 2)), pa.decimal128(38, 2)),
        (pa.array([PRICE], pa.decimal32(5, 2)), pa.decimal128(5, 2)),
        (pa.array([PRICE], pa.decimal64(12, 2)), pa.decimal128(12, 2)),
        (pa.array([Decimal(150)], pa.decimal128(5, -1)), pa.decimal128(6, 0)),
        (pa.array([[PRICE]], pa.list_(pa.decimal256(50, 2))), pa.list_(pa.decimal128(38, 2))),
        (pa.array([{"a": PRICE}], pa.struct([("a", pa.decimal256(50, 2))])),
         pa.struct([("a", pa.decimal128(38, 2))])),
        (pa.array([[("a", PRICE)]], pa.map_(pa.string(), pa.decimal256(50, 2))),
         pa.map_(pa.string(), pa.decimal128(38, 2))),
        (pa.array([[1], [2, 3], []], pa.list_view(pa.int64())), pa.large_list(pa.int64())),
        (pa.array([[1], [2, 3], []], pa.list_view(pa.int64()))[1:], pa.large_list(pa.int64())),
        (pa.array([[1], None, [2, 3]], pa.large_list_view(pa.int64())), pa.large_list(pa.int64())),
        (pc.run_end_encode(pa.array([1, 1, None, 2])), pa.int64()),
        (pa.array(["a", "b", "a"]).dictionary_encode(),
         pa.dictionary(pa.int32(), pa.string())),
    ],
)  # fmt: skip
def test_a_type_is_normalised_without_a_change_of_values(array: Any, kind: pa.DataType) -> None:
    table = supported(pa.table({"x": array}))
    assert table.schema.field("x").type == kind
    values = [item.as_py() for item in array]
    assert table["x"].to_pylist() == values
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    assert frame.to_arrow()["x"].to_pylist() == values


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), "intervals"),
        (_union(), "unions"),
        (pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), _union()), "unions"),
        (MOMENT.cast(pa.int64()).cast(pa.timestamp("us", "Mars/Phobos")), "zone 'Mars/Phobos'"),
        (pa.array([[[1]]], pa.list_(pa.list_view(pa.int64()))), "not supported within"),
        (pa.StructArray.from_arrays([pc.run_end_encode(pa.array([1]))], ["a"]), "within another"),
        (pa.array([Decimal("1" * 45)], pa.decimal256(50, 0)), "does not fit"),
    ],
)
def test_another_type_is_refused_with_its_column(array: pa.Array, reason: str) -> None:
    with pytest.raises(DataError, match=f"column 'x'.*{reason}"):
        supported(pa.table({"y": np.zeros(len(array)), "x": array}))


def test_a_supported_table_is_returned_as_it_is() -> None:
    table = pa.table({"a": [1.5], "b": ["x"], "c": [dt.date(2020, 1, 1)]})
    assert supported(table) is table
