"""Schemas inferred from rows: these satisfy them, rows that differ do not."""

from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.data import Schema, Table, ValidationError, infer_schema, read, validate
from raysys.data.validation._infer_schema import guesses
from raysys.data.validation._value_types import polars_type, read_values
from raysys.errors import DataError

ROWS = 300


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": rng.permutation(ROWS) + 5000,
            "delay": pd.array(rng.integers(-20, 81, ROWS), "Int64"),
            "distance": rng.uniform(100, 1100, ROWS).round(2),
            "carrier": rng.choice(["AA", "UA", "DL"], ROWS),
            "tail": [f"N{n}" for n in rng.integers(0, 100, ROWS)],
            "zip": [f"{n:05}" for n in rng.integers(0, 90, ROWS)],
            "late": rng.choice(["true", "false"], ROWS),
            "day": [str(date(2013, 1, 1 + n % 28)) for n in range(ROWS)],
            "hour": [f"2013-01-{1 + n % 28:02}T{n % 24:02}:00:00Z" for n in range(ROWS)],
            "year": 2013,
            "nothing": None,
        }
    )


@pytest.fixture(scope="module")
def raw(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Table:
    path = tmp_path_factory.mktemp("infer") / "flights.csv"
    frame = frame.copy()
    frame.loc[frame.index[::10], "delay"] = pd.NA
    frame.to_csv(path, index=False)
    return read(path, raw=True).materialize()


@pytest.fixture(scope="module")
def schema(raw: Table) -> Schema:
    return infer_schema(raw, "flights")


def test_types_are_guessed_from_text(schema: Schema) -> None:
    assert {name: column.type for name, column in schema.columns.items()} == {
        "id": "int64", "delay": "int64", "distance": "float64", "carrier": "string",
        "tail": "string", "zip": "string", "late": "bool", "day": "date",
        "hour": "timestamp[us, UTC]", "year": "int64", "nothing": "string",
    }  # fmt: skip


def test_constraints_are_inferred_from_values(schema: Schema, frame: pd.DataFrame) -> None:
    columns = schema.columns
    assert [name for name in columns if columns[name].nullable] == ["delay", "nothing"]
    assert columns["carrier"].allowed == ["AA", "DL", "UA"]
    assert columns["tail"].allowed is None
    assert schema.unique == [["id"]]
    assert (columns["id"].min, columns["id"].max) == (0, None)
    assert (columns["delay"].min, columns["delay"].max) == (-30, 90)
    assert columns["distance"].min is not None
    assert 0 <= columns["distance"].min < frame["distance"].min()
    assert 1150 < columns["distance"].max < 1250
    assert (columns["day"].min, columns["day"].max) == (date(2013, 1, 1), None)
    assert (columns["year"].min, columns["year"].max) == (0, None)
    low, high = frame["distance"].quantile([0.25, 0.75])
    assert schema.distributions["distance"].median == pytest.approx([low, high], rel=0.02)
    assert schema.distributions["delay"].null_share == pytest.approx([0.05, 0.15], abs=2e-3)
    assert "year" not in schema.distributions
    assert schema.rows.min == ROWS // 2


def test_the_table_satisfies_its_schema_also_after_an_edit_as_yaml(
    raw: Table, schema: Schema
) -> None:
    result = validate(raw, Schema.from_yaml(schema.to_yaml()))
    assert (len(result.valid), len(result.quarantine)) == (ROWS, 0)
    assert len(result.checks) > 3


def test_a_changed_table_fails(raw: Table, schema: Schema) -> None:
    rows = raw.to_arrow().to_pandas().drop(columns=["_file", "_line", "_malformed"])
    rows.loc[5, "carrier"] = "ZZ"
    rows["distance"] = (rows["distance"].astype(float) / 3).clip(lower=10).astype(str)
    with pytest.raises(ValidationError, match="distance median: ") as raised:
        validate(Table.from_arrow(pa.Table.from_pandas(rows), 100), schema)
    assert raised.value.result.reasons["carrier is not an allowed value"] == 1


def test_a_typed_table_keeps_its_types_and_small_ones_get_no_distribution(
    ray_cluster: None,
) -> None:
    table = pa.table(
        {
            "a": pa.array([1, 2, 2], pa.int8()),
            "b": pa.array(["1", "2", None]),
            "c": pa.array([1, 2, 3], pa.timestamp("s")),
            "d": [[1], [2], [3]],
        }
    )
    schema = infer_schema(Table.from_arrow(table, 2), "small")
    assert {name: column.type for name, column in schema.columns.items()} == {
        "a": "int8", "b": "string", "c": "timestamp[ms]",
    }  # fmt: skip
    assert (schema.unique, schema.distributions) == ([], {})
    with pytest.raises(DataError, match=r"no column of \['d'\] has a type"):
        infer_schema(Table.from_arrow(table.select(["d"])), "lists")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text("01.-T:Z ", max_size=20)), min_size=1, max_size=20))
def test_all_values_read_as_each_guess(texts: list[str | None]) -> None:
    block = pa.table({"x": pa.array(texts, pa.large_string())})
    for kind in guesses(block, ["x"])["x"]:
        assert read_values(pl.Series("x", block["x"]), polars_type(kind))[1] is None


def test_the_schema_does_not_depend_on_blocks(raw: Table, schema: Schema, tmp_path: Path) -> None:
    rows = raw.to_arrow()
    assert infer_schema(Table.from_arrow(rows, 70), "flights") == schema


def test_ids_have_no_bound_that_refuses_the_next_file() -> None:
    rows = np.arange(200)
    names = ["user_id", "userId", "id", "ID", "zip_code", "order no"]
    columns = dict.fromkeys(names, rows // 2 + 7) | {"price": rows // 2, "valid": rows // 3}
    schema = infer_schema(Table.from_arrow(pa.table(columns)), "orders")
    for name in names:
        assert (schema.columns[name].min, schema.columns[name].max) == (0, None)
        assert name not in schema.distributions
    assert schema.columns["price"].max == 109
    assert schema.columns["valid"].max is not None
    later = pa.table({name: values + 10_000 * (name in names) for name, values in columns.items()})
    assert len(validate(Table.from_arrow(later), schema).quarantine) == 0
