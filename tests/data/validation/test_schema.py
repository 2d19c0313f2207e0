"""Schemas as plain data, and conversion of values to their types."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raysys.data import Column, Schema
from raysys.data.validation._value_types import polars_type, read_values
from raysys.errors import DataError

TEXT = """
name: flights
columns:
  delay: {type: int64, min: -120, max: 2000, nullable: true}
  tail: {type: string, pattern: 'N[0-9A-Z]+', nullable: true}
  carrier: {type: string, allowed: [AA, UA]}
  origin: {type: string, foreign_key: airports.faa}
  day: {type: date, min: 2013-01-01}
  hour: {type: 'timestamp[us, UTC]', min: 2013-01-01, max: 2014-01-01T05:30:00}
unique: [[hour, carrier]]
rules: {late: "delay > 0 OR carrier = 'AA'"}
distributions:
  delay: {median: [-5, 0], null_share: [0, 0.05]}
  day: {max: [2013-01-01, 2014-01-01]}
rows: {min: 1000}
"""


def test_a_schema_is_read_from_yaml() -> None:
    schema = Schema.from_yaml(TEXT)
    assert schema.columns["delay"] == Column(type="int64", min=-120, max=2000, nullable=True)
    assert schema.columns["day"].min == date(2013, 1, 1)
    assert schema.columns["hour"].max == datetime(2014, 1, 1, 5, 30, tzinfo=UTC)
    assert (schema.unique, schema.rows.min) == ([["hour", "carrier"]], 1000)


def test_a_schema_round_trips_through_yaml_and_json() -> None:
    schema = Schema.from_yaml(TEXT)
    assert Schema.from_yaml(schema.to_yaml()) == schema
    assert Schema.from_yaml(schema.model_dump_json()) == schema
    assert "  delay: {type: int64, nullable: true, min: -120, max: 2000}\n" in schema.to_yaml()
    assert repr(schema) == "Schema('flights', 6 columns, 1 rules, unique: [['hour', 'carrier']])"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("int64", "int", r"columns\.delay: unknown type 'int'; types are int8, "),
        ("us, UTC", "us, Mars/X", r"columns\.hour: unknown time zone"),
        ("us, UTC", "h", r"columns\.hour: unknown type 'timestamp\[h\]'"),
        ("min: -120", "min: low", r"columns\.delay: min 'low' does not fit the type int64"),
        ("max: 2000", "max: -2000", r"columns\.delay: min -120 is above max -2000"),
        ("2013-01-01}", "soon}", r"columns\.day: min 'soon' is not an ISO 8601 date"),
        ("pattern: 'N[", "min: 1, pattern: 'N[", r"columns\.tail: min 1 does not fit the type str"),
        (
            "N[0-9A-Z]+",
            "N[0",
            r"columns\.tail: pattern 'N\[0' is not a regular expression: .*class",
        ),
        (
            "string, allowed",
            "int64, allowed",
            r"columns\.carrier: allowed: 'AA' is not a valid int",
        ),
        ("[AA, UA]", "[AA, NO]", r"columns\.carrier: allowed: False is not .*: quote it"),
        ("[AA, UA]", "[]", r"columns\.carrier: allowed is an empty list"),
        ("airports.faa", "airports", r"columns\.origin: foreign_key 'airports': give it as"),
        ("nullable: true}", "nulable: true}", r"columns\.delay\.nulable: Extra inputs"),
        ("[[hour, carrier]]", "[[hour, seat]]", r"unique .*: unknown columns \['seat'\]"),
        ("delay > 0", "lag > 0", r"rule 'late': .*unknown columns \['lag'\]"),
        ("delay > 0", "delay >", r"rule 'late': .* is not an SQL expression"),
        ("delay > 0 OR carrier = 'AA'", "delay + 1", r"rule 'late': .* not a boolean"),
        ("delay > 0", "carrier > 0", r"rule 'late': .* cannot compare string"),
        ("delay > 0", "delay > max(delay)", r"rule 'late': .* depends on other rows"),
        ("delay > 0", "delay > count(*)", r"rule 'late': .* depends on other rows"),
        ("  delay: {median", "  lag: {median", r"distributions: unknown columns \['lag'\]"),
        ("[-5, 0]", "[5, 0]", r"distributions\.delay\.median: the lower bound 5 is above 0"),
        ("day: {max", "day: {mean", r"distributions\.day\.mean: a mean requires numbers, not date"),
        ("delay: {median", "carrier: {median", r"distributions\.carrier\.median .* string"),
        ("  tail:", "  _row:", r"columns \['_row'\]"),
        ("name: flights", "names: flights", r"name: Field required; names: Extra"),
        ("name: flights", "name: [", "the schema is not valid YAML"),
    ],
)
def test_errors_in_a_schema_are_named(old: str, new: str, says: str) -> None:
    assert old in TEXT
    with pytest.raises(DataError, match=says):
        Schema.from_yaml(TEXT.replace(old, new))


def test_rules_may_compute_within_a_row() -> None:
    rule = "delay BETWEEN 1 + 2 AND abs(delay) * 2 AND length(tail) > 3 AND tail LIKE 'N%'"
    assert Schema.from_yaml(TEXT.replace("delay > 0 OR carrier = 'AA'", rule)).rules["late"] == rule


def test_a_schema_from_python_is_validated_too() -> None:
    with pytest.raises(ValidationError, match="unknown type"):
        Column(type="text")


def read(values: list[Any] | pl.Series, kind: str) -> list[Any]:
    """Values as read, with "invalid" in place of invalid ones."""
    series = values if isinstance(values, pl.Series) else pl.Series("x", values)
    converted, wrong = read_values(series, polars_type(kind))
    marks = [False] * len(converted) if wrong is None else wrong.to_list()
    return [BAD if mark else v for v, mark in zip(converted.to_list(), marks, strict=True)]


BAD = "invalid"


@pytest.mark.parametrize(
    ("kind", "cases"),
    [
        ("int64", {"7": 7, "-7": -7, "7.0": 7, "007": 7, "7.5": BAD, "1e3": BAD, "": BAD, " 7": 7,
                   "0x1": 1, "9223372036854775807": 2**63 - 1, "9223372036854775808": BAD}),
        ("uint8", {"255": 255, "256": BAD, "-1": BAD}),
        ("float64", {"1": 1.0, "-1e3": -1000.0, ".5": 0.5, "nan": None, "1,5": BAD, "x": BAD}),
        ("bool", {"true": True, "FALSE": False, "1": True, "yes": BAD}),
        ("date", {"2013-02-28": date(2013, 2, 28), "2013-02-30": BAD, "2013-2-8": BAD,
                  "2013-02-28T00:00:00": BAD}),
        ("string", {"x": "x", "": ""}),
        ("timestamp", {
            "2013-01-02T03:04:05": datetime(2013, 1, 2, 3, 4, 5),
            "2013-01-02 03:04:05.25": datetime(2013, 1, 2, 3, 4, 5, 250_000),
            "2013-01-02 03:04": datetime(2013, 1, 2, 3, 4),
            "2013-01-02": datetime(2013, 1, 2),
            "2013-01-02T03:04:05Z": BAD, "2013-01-02T3:04:05": BAD, "2013-13-02": BAD,
            "2013-01-02T25:00:00": BAD, "2013-01-02T03:04.5": BAD, "yesterday": BAD,
        }),
        ("timestamp[ms, UTC]", {
            "2013-01-02T03:04:05Z": datetime(2013, 1, 2, 3, 4, 5, tzinfo=UTC),
            "2013-01-02 03:04:05+01:00": datetime(2013, 1, 2, 2, 4, 5, tzinfo=UTC),
            "2013-01-02T03:04-0130": datetime(2013, 1, 2, 4, 34, tzinfo=UTC),
            "2013-01-02": datetime(2013, 1, 2, tzinfo=UTC),
            "2013-01-02T03:04:05": BAD,
        }),
        ("timestamp[ns]", {"2013-01-02T00:00:00": datetime(2013, 1, 2), "3013-01-02": BAD}),
    ],
)  # fmt: skip
def test_text_reads_as_a_type_or_is_invalid(kind: str, cases: dict[str, Any]) -> None:
    assert dict(zip(cases, read(list(cases), kind), strict=True)) == cases
    assert read([None, *cases], kind)[0] is None


TIMES = [
    "2013-01-02T03:04:05", "2013-01-02 03:04:05.25", "2013-01-02T03", "2013-01-02", "0001-01-01",
    "2013-01-02T03:04:05Z", "2013-01-02 03:04:05+01:00", "2013-01-02T03:04-0130", "9999-12-31T23Z",
    "2013-01-02T03:04:05.123456789Z", "2013-01-02T24:00:00Z", "2013-01-02T03:04:60Z", "1500-02-29",
    "2013-01-02T03:04:05+14:59", "2013-01-02T03:04:05+99:00", "2013-02-30", "", "it's", "a\n'b'",
]  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [
        "timestamp[ms]",
        "timestamp",
        "timestamp[ns]",
        "timestamp[us, UTC]",
        "timestamp[ns, Asia/Tokyo]",
    ],
)
def test_a_time_reads_alike_alone_and_beside_others(kind: str) -> None:
    full = "2013-05-06T07:08:09" + "Z" * (", " in kind)
    slow = [read([text, *[f"no {n}" for n in range(9)]], kind)[0] for text in TIMES]
    assert [read([text], kind)[0] for text in TIMES] == slow
    (value,) = read([full], kind)
    assert slow.count(BAD) not in (0, len(TIMES))
    few = [full, None, *TIMES[-3:]] * 4000  # the same few texts are invalid, all over
    assert read(few, kind) == [value, None, BAD, BAD, BAD] * 4000
    late = [full] * 9000 + TIMES
    assert read(late, kind) == [value] * 9000 + slow


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("int8", [1, 300, None], [1, BAD, None]),
        ("int64", [4.0, 4.5, float("nan"), 1e300], [4, BAD, None, BAD]),
        ("float32", [1, 2], [1.0, 2.0]),
        ("int64", [datetime(2013, 1, 1), None], [BAD, None]),
        ("int64", [True], [BAD]),
        ("string", [1, 2], ["1", "2"]),
        ("date", [datetime(2013, 1, 1), datetime(2013, 1, 1, 5)], [date(2013, 1, 1), BAD]),
        ("timestamp", [date(2013, 1, 1)], [datetime(2013, 1, 1)]),
        ("timestamp[ns]", [datetime(2013, 1, 1), datetime(3013, 1, 1)],
         [datetime(2013, 1, 1), BAD]),
        ("timestamp[us, UTC]", [datetime(2013, 1, 1, 5)], [BAD]),
        ("bool", [None, None], [None, None]),
    ],
)  # fmt: skip
def test_typed_values_read_as_a_type_that_can_represent_them(
    kind: str, values: list[Any], expected: list[Any]
) -> None:
    assert read(values, kind) == expected


def test_text_in_any_of_arrows_forms_is_read() -> None:
    text = pa.array(["7", "x", None])
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        assert read(pl.Series("x", text.cast(kind)), "int64") == [7, BAD, None]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text("0123456789.-+eE ", max_size=22)), max_size=20))
def test_integers_and_floats_read_exactly(texts: list[str | None]) -> None:
    as_int = read(pl.Series("x", texts, pl.String), "int64")
    as_float = read(pl.Series("x", texts, pl.String), "float64")
    for text, integer, number in zip(texts, as_int, as_float, strict=True):
        if text is None:
            assert (integer, number) == (None, None)
            continue
        if isinstance(integer, int):
            assert integer == Decimal(text)
        elif text.isdigit():
            assert int(text) >= 2**63
        if isinstance(number, float):
            assert number == float(text)
