"""Numbers and times of CSV and JSON are kept as written, or refused; without a cluster."""

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raysys.data.readers import _csv_inspect
from raysys.data.readers._csv import CsvOptions
from raysys.data.readers._files import find
from raysys.data.readers._json_lines import inspect_json
from raysys.data.readers._read import _wider
from raysys.errors import DataError

TEXT, UTC = pa.large_string(), pa.timestamp("us", "UTC")


def csv_table(path: Path, text: str, **options: Any) -> pa.Table:
    path.write_text(text)
    return _csv_inspect.inspect(find(path)[0], CsvOptions(**options)).read()


def json_table(path: Path, text: str, raw: bool = False) -> pa.Table:
    path.write_text(text)
    return inspect_json(find(path)[0], raw).read()


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["1", "-2"], pa.int64(), [1, -2]),
        (["0", "-0", "1"], pa.int64(), [0, 0, 1]),
        (["10000000000000000001", "10000000000000000002"], pa.uint64(),
         [10000000000000000001, 10000000000000000002]),
        (["9007199254740993", "10000000000000000002"], pa.uint64(),
         [9007199254740993, 10000000000000000002]),
        (["-5", "10000000000000000001"], TEXT, None),
        (["99999999999999999999999"], TEXT, None),
        (["1.5", "9007199254740993"], TEXT, None),
        (["1.5", "9007199254740992"], pa.float64(), [1.5, 9007199254740992.0]),
        (["12345678901234567.25"], TEXT, None),
        (["12345678901234567000.0", "1.5"], pa.float64(), [12345678901234567000.0, 1.5]),
        (["12345678901234567168.000000"], pa.float64(), [12345678901234567168.0]),
        (["12e4567", "1"], TEXT, None),
        (["1e5", "2"], pa.float64(), [1e5, 2.0]),
        (["inf", "nan", "0.1000000000000000055"], pa.float64(), None),
        (["00501", "12345"], TEXT, None),
        (['"00501"', '"12345"'], TEXT, ["00501", "12345"]),
        (["007.5"], TEXT, None),
        (["-01"], TEXT, None),
        (["0.5", "-0.25"], pa.float64(), [0.5, -0.25]),
        (["0x1F"], TEXT, None),
        (["+493012345678"], TEXT, None),
        (["+5.5"], pa.float64(), [5.5]),
        (["09:30", "10:15"], pa.time32("s"), [dt.time(9, 30), dt.time(10, 15)]),
    ],
)  # fmt: skip
def test_csv_has_types_that_keep_what_is_written(
    tmp_path: Path, values: list[str], kind: pa.DataType, expected: list[Any] | None
) -> None:
    table = csv_table(tmp_path / "a.csv", "\n".join(["x", *values, ""]))
    assert table.schema.field("x").type == kind
    if expected is not None or kind == TEXT:
        assert table["x"].to_pylist() == (expected or values)


def test_quoted_empty_values_are_missing_but_for_text(tmp_path: Path) -> None:
    """What `to_csv(quoting=QUOTE_ALL)` writes."""
    text = '"a","b","c","d"\n"1","","x",""\n"","2.5","",""\n'
    table = csv_table(tmp_path / "a.csv", text)
    assert table.to_pydict() == {
        "a": [1, None], "b": [None, 2.5], "c": ["x", ""], "d": ["", ""],
    }  # fmt: skip
    table = csv_table(tmp_path / "b.csv", 'a,b\n"NA",1\n3,"NA"\n', null_values=("", "NA"))
    assert table.to_pydict() == {"a": [None, 3], "b": [1, None]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2,00501,0.5", r"line 600002: zip: '00501' is not kept .* type int64.*types={'zip'"),
        ("2,12345,9007199254740993", r"line 600002: f: '9007199254740993' is not kept"),
        ("10000000000000000001,12345,0.5", r"line 600002: id: '1\d+1' is not a valid int64"),
    ],
)
def test_a_value_after_the_sample_that_its_type_would_change_is_refused(
    tmp_path: Path, row: str, message: str
) -> None:
    usual = "1,12345,0.5\n"
    text = "id,zip,f\n" + usual * 600_000 + row + "\n" + usual * 100_000
    with pytest.raises(DataError, match=message):
        csv_table(tmp_path / "a.csv", text)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["10000000000000000001", "5"], pa.uint64()),
        (["1e19", "2"], pa.float64()),
        (["1.5", "10000000000000000000"], pa.float64()),  # float64 has it
        (["[1, 10000000000000000001]", "null"], pa.list_(pa.uint64())),
        (['{"y": 10000000000000000001}'], pa.struct([("y", pa.uint64())])),
        (['"00501"'], TEXT),
        (['"2020-01-01T12:34:00Z"', '"2020-01-01T13:34:00+01:00"'], UTC),
        (['"2020-01-01T12:34:00.5Z"'], UTC),
        (['"2020-01-01T12:34:00"', '"2020-01-01T12:34:00.25"'], pa.timestamp("us")),
        (['"2020-01-01T12:34:00.123456789"'], pa.timestamp("ns")),
        (['"2020-01-01"'], pa.date32()),
        (['"2020-01-01T12:34:00Z"', '"2020-01-01T12:34:00"'], TEXT),
        (['{"t": ["2020-01-01T12:34:00+05:30"]}'], pa.struct([("t", pa.list_(UTC))])),
    ],
)
def test_json_has_types_that_keep_what_is_written(
    tmp_path: Path, values: list[str], kind: pa.DataType
) -> None:
    text = "".join(f'{{"x": {value}}}\n' for value in values)
    assert json_table(tmp_path / "a.jsonl", text).schema.field("x").type == kind


def test_json_times_are_instants(tmp_path: Path) -> None:
    text = '{"t": "2020-01-01T12:34:00+05:30"}\n{"t": "2020-01-01T07:04:00Z"}\n'
    (first, second) = json_table(tmp_path / "a.jsonl", text)["t"].to_pylist()
    assert first == second == dt.datetime(2020, 1, 1, 7, 4, tzinfo=dt.UTC)


@pytest.mark.parametrize("others", ["1.5", "-5"])
def test_json_integers_without_a_type_are_refused(tmp_path: Path, others: str) -> None:
    text = f'{{"x": {others}}}\n{{"x": 10000000000000000001}}\n'
    with pytest.raises(DataError, match=r"x: 10000000000000000001 has more digits.*in quotes"):
        json_table(tmp_path / "a.jsonl", text)
    malformed = json_table(tmp_path / "b.jsonl", text, raw=True)["_malformed"].to_pylist()
    assert malformed == [None, '{"x": 10000000000000000001}']


@pytest.mark.parametrize(
    ("usual", "other"),
    [("1.5", "10000000000000000001"), ('"2020-01-01T12:34:00Z"', '"2020-01-01T12:34:00"')],
)
def test_a_json_line_after_the_sample_that_does_not_fit_is_a_finding(
    tmp_path: Path, usual: str, other: str
) -> None:
    count = (5 << 20) // len(usual)
    text = f'{{"x": {usual}}}\n' * count + f'{{"x": {other}}}\n'
    with pytest.raises(DataError, match=f"line {count + 1}: "):
        json_table(tmp_path / "a.jsonl", text)
    malformed = json_table(tmp_path / "b.jsonl", text, raw=True)["_malformed"]
    assert malformed.null_count == count
    assert malformed[count].as_py() == f'{{"x": {other}}}'


def test_unsigned_beside_signed_integers_are_unsigned() -> None:
    assert _wider(pa.int64(), pa.uint64()) == pa.uint64()
    assert _wider(pa.int64(), pa.float64()) == pa.float64()


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_code_after_the_sample_is_an_error_at_the_end_too(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"x,y\n1,2\n3,007{end}")
    part = _csv_inspect.inspect(find(path)[0], CsvOptions())
    part = replace(part, columns=pa.schema([("x", pa.int64()), ("y", pa.int64())]))
    with pytest.raises(DataError, match=r"line 3: y: '007' is not kept as written"):
        part.read()


def test_codes_of_a_text_column_leave_numbers_as_they_are(tmp_path: Path) -> None:
    table = csv_table(tmp_path / "a.csv", "zip,n,x\n00501,1,1.5\n00502,2,0.5\n")
    assert table.to_pydict() == {"zip": ["00501", "00502"], "n": [1, 2], "x": [1.5, 0.5]}
