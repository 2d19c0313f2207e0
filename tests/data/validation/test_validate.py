"""Validation: exactly the broken rows go to quarantine, with exactly their reasons."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jobs.film_etl import SCHEMA as RATINGS
from raysys.data import Schema, Table, ValidationError, ValidationResult, read, validate
from raysys.data._remaining_rows import rows_of, without
from raysys.data.validation._row_rules import split_block
from raysys.data.validation._uniqueness import (
    candidates,
    duplicates,
    hashes_of,
    partition,
    repeats,
    shared,
)
from raysys.errors import DataError

FLIGHTS = Schema.from_yaml("""
name: flights
columns:
  flight: {type: int64, min: 1}
  delay: {type: int16, min: -120, max: 2000, nullable: true}
  tail: {type: string, pattern: 'N[0-9A-Z]+', nullable: true}
  carrier: {type: string, allowed: [AA, UA]}
  origin: {type: string, foreign_key: airports.faa}
  start: {type: float64}
  end: {type: float64, nullable: true}
  hour: {type: 'timestamp[us, UTC]', min: 2013-01-01, max: 2014-01-01}
unique: [[hour, carrier, flight]]
rules: {lands after it starts: "\\"end\\" > start"}
""")
AIRPORTS = ["EWR", "JFK", "LGA"]
DUPLICATE = "duplicate hour, carrier, flight"


def flights(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Valid rows, as text of a CSV file."""
    rng = np.random.default_rng(seed)
    return [
        {
            "flight": str(number + 1),
            "delay": None if rng.random() < 0.1 else str(rng.integers(-20, 100)),
            "tail": None if rng.random() < 0.1 else f"N{rng.integers(1000)}AB",
            "carrier": str(rng.choice(["AA", "UA"])),
            "origin": str(rng.choice(AIRPORTS)),
            "start": f"{rng.random():.3f}",
            "end": None if rng.random() < 0.1 else f"{1 + rng.random():.3f}",
            "hour": f"2013-{rng.integers(1, 13):02}-{rng.integers(1, 29):02}T05:00:00Z",
            "_malformed": None,
        }
        for number in range(rows)
    ]


def broken(row: dict[str, Any], way: int) -> tuple[dict[str, Any], str]:
    """A row broken in one of ten ways, and the reason."""
    line = dict.fromkeys(row, None) | {"_malformed": "1,2,3"}
    return [
        (row | {"delay": "abc"}, "delay: 'abc' is not a valid int16"),
        (row | {"delay": "2001"}, "delay: 2001 exceeds max 2000"),
        (row | {"tail": "xN1"}, "tail: 'xN1' does not match pattern N[0-9A-Z]+"),
        (row | {"start": None}, "start: missing"),
        (row | {"carrier": "ZZ"}, "carrier: 'ZZ' is not an allowed value"),
        (row | {"origin": "XXX"}, "origin: 'XXX' is not in airports.faa"),
        (row | {"start": "5", "end": "4"}, "rule 'lands after it starts' fails: end=4, start=5"),
        (line, "malformed line: '1,2,3'"),
        (row | {"hour": "2013-13-01"}, "hour: '2013-13-01' is not a valid timestamp[us, UTC]"),
        (row | {"delay": "99999", "carrier": None},
         "delay: '99999' is not a valid int16; carrier: missing"),
    ][way]  # fmt: skip


def broken_table(rows: int, seed: int) -> tuple[pa.Table, dict[int, str]]:
    """Rows of two files of which some are broken, and their reasons by row number."""
    rng = np.random.default_rng(seed)
    written, reasons = flights(rows, seed), {}
    for number in rng.choice(np.arange(1, rows), rows // 5, replace=False).tolist():
        if (way := int(rng.integers(11))) < 10:
            written[number], reasons[number] = broken(written[number], way)
        else:
            earlier = next(n for n in range(rows) if n not in reasons)
            if earlier < number:
                same = {name: written[earlier][name] for name in ("hour", "carrier", "flight")}
                written[number] |= same
                reasons[number] = f"{DUPLICATE} (first in a.csv, row {earlier})"
    text = {name: pa.large_string() for name in written[0]}
    table = pa.Table.from_pylist(written, pa.schema(text))
    half = rows // 2
    names = pa.array(["a.csv"] * half + ["b.csv"] * (rows - half)).dictionary_encode()
    numbers = pa.array([*range(half), *range(rows - half)])
    return table.append_column("_file", names).append_column("_row", numbers), reasons


def number_of(row: dict[str, Any], rows: int) -> int:
    return int(row["_row"]) + (rows // 2 if row["_file"] == "b.csv" else 0)


@pytest.mark.parametrize("seed", range(4))
def test_a_block_is_split_exactly(seed: int) -> None:
    table, reasons = broken_table(500, seed)
    expected = {n: reason for n, reason in reasons.items() if DUPLICATE not in reason}
    valid, bad, examples = split_block(table, FLIGHTS, {"airports.faa": pa.array(AIRPORTS)})
    assert {number_of(row, 500): row["_reason"] for row in bad.to_pylist()} == expected
    assert len(expected) > 60
    passing = [row for n, row in enumerate(table.to_pylist()) if n not in expected]
    assert valid["flight"].to_pylist() == [int(row["flight"]) for row in passing]
    assert valid["end"].to_pylist() == [row["end"] and float(row["end"]) for row in passing]
    kinds = sum(len(reason.split("; ")) for reason in expected.values())
    assert sum(count for count, _ in examples.values()) == kinds


def test_a_bad_row_keeps_all_values_as_written() -> None:
    rows = [flights(1)[0] | {"delay": "07.50", "extra": "more"}]
    table = pa.Table.from_pylist(rows).append_column("_row", pa.array([0]))
    valid, bad, _ = split_block(table, FLIGHTS, {"airports.faa": pa.array(AIRPORTS)})
    assert len(valid) == 0
    assert bad.to_pylist() == [
        rows[0] | {"_row": 0, "_reason": "delay: '07.50' is not a valid int16"}
    ]


def test_an_empty_block_has_the_types_of_a_full_one() -> None:
    table, _ = broken_table(50, 0)
    keys = {"airports.faa": pa.array(AIRPORTS)}
    full, empty = split_block(table, FLIGHTS, keys), split_block(table.slice(0, 0), FLIGHTS, keys)
    assert (empty.valid.schema, empty.bad.schema) == (full.valid.schema, full.bad.schema)
    assert (len(empty.valid), len(empty.bad)) == (0, 0)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("cuts", [[], [10, 10, 37]])
def test_duplicates_are_those_of_pandas(cuts: list[int], parts: int) -> None:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "a": pd.array(rng.integers(0, 12, 90), "Int64"),
            "b": rng.choice(["x", "y", None], 90),
            "c": rng.integers(0, 400, 90),
            "_row": np.arange(90),
        }
    )
    frame.loc[rng.choice(90, 10), "a"] = pd.NA
    groups = [["a", "b"], ["c"]]
    first = frame.duplicated(groups[0]) & frame[groups[0]].notna().all(axis=1)
    second = frame[~first].duplicated(groups[1]).reindex(frame.index, fill_value=False)
    assert (first.sum() > 10, second.sum() > 3) == (True, True)

    bounds = [0, *cuts, 90]
    blocks = [
        pa.Table.from_pandas(frame[low:high], preserve_index=False)
        for low, high in pairwise(bounds)
    ]
    firsts = np.array(bounds)
    hashes = [hashes_of(block, groups) for block in blocks]
    pieces = zip(*[partition(of_block, parts) for of_block in hashes], strict=True)
    twice = [shared(*of_part)[0] for of_part in pieces]
    values = [
        candidates(block, of_block, {"_row": block["_row"].chunk(0)}, groups, n, *twice)
        for block, of_block, n in zip(blocks, hashes, firsts, strict=False)
        if len(block)
    ]
    repeated, places, counts = repeats(groups, firsts, *values)
    assert places.tolist() == np.flatnonzero(first | second).tolist()
    assert counts.tolist() == [(first | second)[a:z].sum() for a, z in pairwise(bounds)]
    columns = ["a", "b", "more", "c", "_row", "_reason"]
    bad = [duplicates(b, n, repeated, columns) for b, n in zip(blocks, firsts, strict=False)]
    assert {tuple(rows.column_names) for rows in bad} == {tuple(columns)}
    reasons = {row["_row"]: row["_reason"] for rows in bad for row in rows.to_pylist()}
    assert sorted(reasons) == np.flatnonzero(first | second).tolist()
    number = int(np.flatnonzero(first)[0])
    same = (frame[groups[0]] == frame.loc[number, groups[0]]).all(axis=1)
    assert reasons[number] == f"duplicate a, b (first in row {same.idxmax()})"


def test_rows_that_only_share_a_hash_are_not_duplicates() -> None:
    block, hashes = pa.table({"a": [3, 1, 3, 2]}), [np.zeros(4, np.uint64)]
    twice, counts = shared(hashes)
    assert counts == [1]
    rows = candidates(block, hashes, {"_row": pa.array([0, 1, 2, 3])}, [["a"]], 0, twice)
    _, places, counts = repeats([["a"]], np.array([0, 4]), rows)
    assert (places.tolist(), counts.tolist()) == ([2], [1])


@pytest.mark.parametrize("removed", [[], [0, 3, 4], [*range(10)], [*range(0, 1000, 3)]])
def test_rows_are_left_out_of_a_block(removed: list[int]) -> None:
    block = pa.table({"a": np.arange(max(10, len(removed) * 3))})
    rows = without(block, rows_of(np.array([-2, *removed, 5000]) + 50, 50, len(block)))
    assert rows["a"].to_pylist() == np.delete(np.arange(len(block)), removed).tolist()


# --- on a cluster ---


@pytest.fixture(scope="module")
def airports(ray_cluster: None) -> Table:
    return Table.from_arrow(pa.table({"faa": [*AIRPORTS, "LGA", None]}), rows_per_block=2)


@pytest.mark.parametrize("rows_per_block", [400, 77])
def test_a_table_is_validated_for_any_blocks(rows_per_block: int, airports: Table) -> None:
    table, reasons = broken_table(400, 7)
    result = validate(
        Table.from_arrow(table, rows_per_block), FLIGHTS, tables={"airports": airports}
    )
    actual = {number_of(r, 400): r["_reason"] for r in result.quarantine.to_arrow().to_pylist()}
    assert actual == reasons
    assert sum(DUPLICATE in reason for reason in reasons.values()) >= 2
    passing = [row for n, row in enumerate(table.to_pylist()) if n not in reasons]
    assert result.valid.to_arrow()["flight"].to_pylist() == [int(row["flight"]) for row in passing]
    assert result.valid.schema.names == list(FLIGHTS.columns)
    assert {tuple(meta.schema.names) for meta in result.quarantine.metas()} == {
        (*table.column_names, "_reason")
    }
    kinds = Counter(reason.split(" (")[0] for reason in reasons.values() if DUPLICATE in reason)
    assert result.reasons[DUPLICATE] == kinds[DUPLICATE]
    worst = next(n for n in sorted(reasons) if reasons[n].startswith("carrier: 'ZZ'"))
    assert result.examples["carrier is not an allowed value"] == (
        f"{'ab'[worst // 200]}.csv: row {worst % 200}"
    )
    assert result.rows == 400
    assert repr(result).startswith(
        f"ValidationResult({400 - len(reasons)} valid, {len(reasons)} in"
    )
    assert f"<td>{DUPLICATE}</td>" in result._repr_html_()


@pytest.fixture(scope="module")
def numbers(ray_cluster: None) -> Table:
    table = pa.table({"x": [*range(1, 100), None], "day": pa.array([15_000] * 100, pa.date32())})
    return Table.from_arrow(table, rows_per_block=30)


def _of_numbers(**more: Any) -> Schema:
    columns = {"x": {"type": "int64", "nullable": True}, "day": {"type": "date"}}
    return Schema.model_validate({"name": "numbers", "columns": columns, **more})


def test_table_checks_use_all_valid_rows(numbers: Table) -> None:
    bounds = {"x": {"min": [1, 1], "median": [50, 50], "mean": [50, 50], "max": [99, 99],
                    "null_share": [0.01, 0.01]},
              "day": {"median": ["2011-01-26", "2011-01-26"]}}  # fmt: skip
    rows = {"min": 100, "max": 100, "max_quarantined_share": 0}
    result = validate(numbers, _of_numbers(distributions=bounds, rows=rows))
    assert len(result.checks) == 8
    assert all(check.passed for check in result.checks)


def test_a_failed_table_check_raises_with_values_and_keeps_the_rows(numbers: Table) -> None:
    columns = {"x": {"type": "int64", "nullable": True, "max": 90}, "day": {"type": "date"}}
    bounds = {"x": {"median": [0, 40], "max": [80, 90]}, "day": {"max": ["2010-01-01"] * 2}}
    schema = _of_numbers(
        columns=columns, distributions=bounds, rows={"max_quarantined_share": 0.05}
    )
    with pytest.raises(ValidationError) as raised:
        validate(numbers, schema)
    assert (
        "3 of 4 table checks of the schema 'numbers' fail over 91 valid rows (9 in quarantine): "
        "quarantined share: 0.09, bounds: to 0.05; x median: 45.5, bounds: from 0 to 40; "
        "day max: 2011-01-26, bounds: from 2010-01-01 to 2010-01-01." in str(raised.value)
    )
    assert raised.value.result.quarantine.to_arrow()["x"].to_pylist() == [str(n) for n in
                                                                       range(91, 100)]  # fmt: skip
    assert raised.value.result.checks[2].passed


def test_a_foreign_key_without_its_table_is_named(numbers: Table) -> None:
    columns = {
        "x": {"type": "int64", "nullable": True, "foreign_key": "ids.id"},
        "day": {"type": "date"},
    }
    with pytest.raises(
        DataError, match=r"column 'x': no such column: 'ids.id'.*\[\].*tables=\{'ids'"
    ):
        validate(numbers, _of_numbers(columns=columns))


def test_a_table_without_a_column_is_refused(numbers: Table) -> None:
    columns = {"x": {"type": "int64"}, "y": {"type": "int64"}}
    with pytest.raises(DataError, match=r"lacks the columns \['y'\] of the schema 'numbers'; it"):
        validate(numbers, _of_numbers(columns=columns))


HEADER = ",".join(RATINGS.columns)
GOOD = "1,10,4,100,Heat,1995,Crime|Drama"
# Rows of the file and their reasons; None for valid rows.
ROWS = [
    (GOOD, None),
    ("1,11,0,100,Up,2009,Family", "rating: 0 is below min 0.5"),
    ("1,12,5.5,100,Up,2009,Family", "rating: 5.5 exceeds max 5"),
    (",14,4,100,Up,2009,Family", "userId: missing"),
    ("1,15.5,4,100,Up,2009,Family", "movieId: '15.5' is not a valid int64"),
    ("1,11,3.5,101,Up,2009,Family", None),  # the earlier row of this person and film is not valid
    ("1,10,2,102,Heat,1995,Crime", "duplicate userId, movieId (first in {file}, line 2)"),
    (",18,abc,100,Up,2009,Family", "userId: missing; rating: 'abc' is not a valid float64"),
    ("1,19,3; 4,100,Up,2009,Family", "rating: '3; 4' is not a valid float64"),
    ("9007199254740993,20,4,100,,,Family", None),  # 2**53 + 1 is not a float64
    (
        "1,9223372036854775808,4,100,Up,2009,F",
        "movieId: '9223372036854775808' is not a valid int64",
    ),
    ("1,9223372036854775807,4,100,Up,,Family", None),  # the largest int64
    ("1,21,4,100,Up,2009", "malformed line: '1,21,4,100,Up,2009'"),
    ("1,21,4,100,Up,2009,", "genres: missing"),
]


def _write(path: Path, *rows: str, header: str = HEADER) -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def _validate(path: str) -> ValidationResult:
    return validate(read(path, list(RATINGS.columns), raw=True), RATINGS)


@pytest.mark.usefixtures("ray_cluster")
def test_rows_of_a_file_are_quarantined_with_file_line_and_reason(tmp_path: Path) -> None:
    path = _write(tmp_path / "ratings.csv", *(row for row, _ in ROWS))
    result = _validate(path)
    actual = {row["_line"]: row["_reason"] for row in result.quarantine.to_arrow().to_pylist()}
    assert actual == {
        n + 2: reason.format(file=path) for n, (_, reason) in enumerate(ROWS) if reason
    }
    assert set(result.quarantine.to_arrow()["_file"].to_pylist()) == {path}
    assert result.valid.to_arrow().to_pylist() == [
        dict(zip(RATINGS.columns, row, strict=True))
        for row in [
            (1, 10, 4.0, 100, "Heat", 1995.0, "Crime|Drama"),
            (1, 11, 3.5, 101, "Up", 2009.0, "Family"),
            (9007199254740993, 20, 4.0, 100, None, None, "Family"),
            (1, 9223372036854775807, 4.0, 100, "Up", None, "Family"),
        ]
    ]


@pytest.mark.usefixtures("ray_cluster")
def test_a_parquet_file_is_validated_by_value(tmp_path: Path) -> None:
    path = tmp_path / "ratings.parquet"
    frame = pd.DataFrame(
        {
            "userId": pd.array([9007199254740993, None, 2], "Int64"),
            "movieId": [1, 2, 3],
            "rating": [4.0, 4.0, 9.0],
            "timestamp": [100.0, 100.0, 100.0],
            "title": None,
            "year": [1995, 1996, 1997],
            "genres": ["Crime", "Crime", "Crime"],
        }
    )
    frame.to_parquet(path)
    result = _validate(str(path))
    assert result.valid.to_arrow()["userId"].to_pylist() == [9007199254740993]
    assert result.quarantine.to_arrow()["_reason"].to_pylist() == [
        "userId: missing", "rating: 9.0 exceeds max 5",
    ]  # fmt: skip


@pytest.mark.usefixtures("ray_cluster")
def test_a_file_without_a_valid_row_is_refused_with_its_quarantine(tmp_path: Path) -> None:
    path = _write(tmp_path / "ratings.csv", "x" + GOOD, ",,,,,,")
    with pytest.raises(
        ValidationError, match="none of the 2 rows satisfies the schema 'ratings'"
    ) as e:
        _validate(path)
    assert len(e.value.result.quarantine) == 2
