from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from jobs.film_etl import SCHEMA
from raysys.data import Checked, Table, check, read
from raysys.errors import DataError

pytestmark = pytest.mark.usefixtures("ray_cluster")

HEADER = ",".join(SCHEMA.columns)
# Rows of the file with the reason for which they must be turned away; None if they are good.
ROWS = [
    ("1,10,4,100,Heat,1995,Crime|Drama", None),
    ("1,11,0,100,Up,2009,Family", "rating: 0.0 fails in_range(0.5, 5)"),
    ("1,12,5.5,100,Up,2009,Family", "rating: 5.5 fails in_range(0.5, 5)"),
    ("1,13,abc,100,Up,2009,Family", "rating: 'abc' is no float64"),
    (",14,4,100,Up,2009,Family", "userId: missing"),
    ("1,,4,100,Up,2009,Family", "movieId: missing"),
    ("1,15.5,4,100,Up,2009,Family", "movieId: '15.5' is no int64"),
    ("1,16,4,yesterday,Up,2009,Family", "timestamp: 'yesterday' is no int64"),
    ("1,11,3.5,101,Up,2009,Family", None),  # the row before it of this person and film is bad
    ("1,10,2,102,Heat,1995,Crime", "userId, movieId: stands in an earlier row"),
    (",18,abc,100,Up,2009,Family", "userId: missing; rating: 'abc' is no float64"),
    ("1,19,3; 4,100,Up,2009,Family", "rating: '3; 4' is no float64"),
    ("9007199254740993,20,4,100,,,Family", None),  # 2**53 + 1 is no float
    ("1,99999999999999999999,4,100,Up,2009,Family", "movieId: '99999999999999999999' is no int64"),
    ("1,9223372036854775808,4,100,Up,2009,F", "movieId: '9223372036854775808' is no int64"),
    ("1,9223372036854775807,4,100,Up,,Family", None),  # the largest int64
    ("1,21,4,100,Up,2009,", "genres: missing"),
]


def _write(path: Path, *rows: str, header: str = HEADER) -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def _check(path: str) -> Checked:
    table = Table.from_modin(read(path, list(SCHEMA.columns)))
    return check(table, SCHEMA, partition_by="userId", blocks=2)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Checked:
    path = tmp_path_factory.mktemp("check") / "ratings.csv"
    return _check(_write(path, *(row for row, _ in ROWS)))


@pytest.fixture(scope="module")
def turned_away(checked: Checked) -> dict[int, str]:
    return {row["_row"]: row["_reason"] for row in checked.quarantine.arrow().to_pylist()}


@pytest.mark.parametrize(
    ("number", "reason"), [(n, reason) for n, (_, reason) in enumerate(ROWS) if reason]
)
def test_a_bad_row_is_quarantined_with_number_and_reason(
    number: int, reason: str, turned_away: dict[int, str]
) -> None:
    assert turned_away[number] == reason


def test_no_good_row_is_quarantined(turned_away: dict[int, str]) -> None:
    assert [n for n, (_, reason) in enumerate(ROWS) if not reason and n in turned_away] == []


def test_good_rows_come_through_intact(checked: Checked) -> None:
    good = checked.good.arrow().sort_by("movieId")
    assert good.to_pylist() == [
        dict(zip(SCHEMA.columns, row, strict=True))
        for row in [
            (1, 10, 4.0, 100, "Heat", 1995.0, "Crime|Drama"),
            (1, 11, 3.5, 101, "Up", 2009.0, "Family"),
            (9007199254740993, 20, 4.0, 100, None, None, "Family"),
            (1, 9223372036854775807, 4.0, 100, "Up", None, "Family"),
        ]
    ]
    assert checked.rows == len(ROWS)


def test_good_rows_have_the_types_of_the_schema_in_every_block(checked: Checked) -> None:
    types = [pa.int64(), pa.int64(), pa.float64(), pa.int64(), pa.string(), pa.float64()]
    for meta in checked.good.metas:
        assert meta.schema.types == [*types, pa.string()]


def test_the_quarantine_keeps_values_as_they_were_written(checked: Checked) -> None:
    rows = {row["_row"]: row for row in checked.quarantine.arrow().to_pylist()}
    assert rows[3] | {"_reason": ""} == {
        "userId": "1", "movieId": "13", "rating": "abc", "timestamp": "100", "title": "Up",
        "year": "2009", "genres": "Family", "_row": 3, "_reason": "",
    }  # fmt: skip
    assert rows[4]["userId"] is None


def test_reasons_are_counted_by_kind_without_the_values(checked: Checked) -> None:
    assert checked.reasons == {
        "rating is no float64": 3,
        "rating fails in_range(0.5, 5)": 2,
        "userId: missing": 2,
        "movieId: missing": 1,
        "movieId is no int64": 3,
        "timestamp is no int64": 1,
        "genres: missing": 1,
        "userId, movieId: stands in an earlier row": 1,
    }


def test_a_long_file_is_checked_over_the_borders_of_its_partitions(tmp_path: Path) -> None:
    rows = [f"{n},10,4,100,Heat,1995,Crime" for n in range(3000)]
    rows[1234] = "1234,10,abc,100,Heat,1995,Crime"
    checked = _check(_write(tmp_path / "ratings.csv", *rows, rows[0]))
    reasons = {row["_row"]: row["_reason"] for row in checked.quarantine.arrow().to_pylist()}
    assert reasons == {
        1234: "rating: 'abc' is no float64",
        3000: "userId, movieId: stands in an earlier row",
    }
    assert [meta.rows > 0 for meta in checked.good.metas] == [True, True]
    assert checked.good.rows == 2999


def test_a_parquet_file_is_checked_by_value(tmp_path: Path) -> None:
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
    checked = _check(str(path))
    assert checked.good.arrow()["userId"].to_pylist() == [9007199254740993]
    assert sorted(checked.quarantine.arrow()["_reason"].to_pylist()) == [
        "rating: 9.0 fails in_range(0.5, 5)",
        "userId: missing",
    ]


GOOD = ROWS[0][0]


def test_a_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "ratings.csv", "1,2", header="userId,stars")
    with pytest.raises(DataError, match=r"ratings\.csv: lacks the columns \['movieId', .*'stars'"):
        _check(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/none\.csv: no such file"):
        _check(str(tmp_path / "none.csv"))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "ratings.txt", GOOD)
    with pytest.raises(DataError, match=r"/ratings\.txt: .* not '\.txt'"):
        _check(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ratings.csv", b""),
        ("ratings.parquet", bytes(range(256)) * 40),
        ("ratings.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40),
        ("ratings.csv", "\n".join([HEADER, *[GOOD] * 9, GOOD + ",one,two,more"]).encode()),
    ],
    ids=["empty csv", "binary parquet", "binary csv", "a line with too many fields"],
)
def test_a_file_that_cannot_be_parsed_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{tmp_path}/{name}: "):
        _check(str(tmp_path / name))


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "ratings.csv")
    with pytest.raises(DataError, match=r"/ratings\.csv: has columns but no rows"):
        _check(path)


def test_a_file_without_a_good_row_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "ratings.csv", "x" + GOOD, ",,,,,,")
    with pytest.raises(DataError, match="none of the 2 rows satisfies the schema 'ratings'"):
        _check(path)
