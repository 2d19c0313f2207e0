"""CSV: parts of files against Python's csv module and pandas, without a cluster."""

import bz2
import csv
import gzip
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.data.readers._csv import CsvOptions, CsvPart
from raysys.data.readers._csv_inspect import inspect
from raysys.data.readers._files import find
from raysys.data.readers._record_boundaries import cut, record_ends, scan, walk
from raysys.errors import DataError


def _part(path: Path, data: bytes, **options: Any) -> CsvPart:
    path.write_bytes(data)
    return inspect(find(path)[0], CsvOptions(**options))


def _pieces(part: CsvPart, size: int) -> list[CsvPart]:
    """A file split as a large one is, with parts of a few bytes."""
    mark = part.options.delimiter
    starts = range(part.start, part.stop, size)
    scans = [(a, scan(part.file, a, min(a + size, part.stop), mark)) for a in starts]
    split = cut(part, scans)
    return walk(part, mark, size) if split is None else split


def _lines(text: str) -> int:
    """Number of the last line of a text, as an editor counts."""
    return 1 + len(re.findall(r"\r\n|\r|\n", text))


_TEXT = st.text(st.sampled_from('ab",\n\r ü\u2028'), max_size=6)
_TABLES = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(_TEXT, min_size=width, max_size=width), max_size=12)
)


@settings(max_examples=150, deadline=None)
@given(
    _TABLES,
    st.integers(1, 60),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.booleans(),
)
def test_csv_of_python_round_trips_for_any_cut(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[str]],
    size: int,
    ending: str,
    quoting: Any,
    last: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    names = [f"c{n}" for n in range(len(rows[0]) if rows else 2)]
    if ending == "\n" and any("\r" in value for row in rows for value in row):
        quoting = csv.QUOTE_ALL  # Python 3.11 leaves a return alone unquoted
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=ending, quoting=quoting)
    lines = []
    for row in [names, *rows]:
        lines.append(_lines(text.getvalue()))
        writer.writerow(row)
    written = text.getvalue() if last else text.getvalue().removesuffix(ending)
    part = _part(path, written.encode(), null_values=(), raw=True)
    pieces = _pieces(part, size)
    assert [p.start for p in pieces[1:]] == [p.stop for p in pieces[:-1]]
    read = pa.concat_tables([p.read() for p in pieces])
    assert [[row[n] for n in names] for row in read.to_pylist()] == rows
    assert read["_line"].to_pylist() == lines[1:]
    assert read["_malformed"].null_count == len(rows)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from('a",\n\r'), max_size=40), st.integers(1, 12))
def test_any_bytes_have_the_same_records_for_any_cut(
    tmp_path_factory: pytest.TempPathFactory, text: str, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "odd.csv"
    part = _part(path, b"x,y\n" + text.encode(), raw=True)
    uncut = part.read()
    # An open quote ends with the file, so only closed ones are cut.
    if record_ends(text.encode(), ",")[1]:
        assert any(uncut["_malformed"].is_valid().to_pylist())
        return
    cut_up = pa.concat_tables([p.read() for p in _pieces(part, size)])
    assert cut_up.to_pylist() == uncut.to_pylist()
    if '"' not in text:
        records = [n for n, line in enumerate(re.split(r"\r\n|\r|\n", text), 2) if line]
        assert uncut["_line"].to_pylist() == records


def test_a_record_may_be_longer_than_a_part_and_than_the_parsers_blocks(tmp_path: Path) -> None:
    rows = [["1", "x" * 3_000_000], ["2", "y\n" * 100], ["3", "z"]]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["a", "b"], *rows])
    part = _part(tmp_path / "a.csv", text.getvalue().encode())
    pieces = _pieces(part, 50)
    assert len(pieces) > 2
    read = pa.concat_tables([p.read() for p in pieces])
    assert read["b"].to_pylist() == [b for _, b in rows]
    plain = _part(tmp_path / "b.csv", b"a\n1\n" + b"2" * 2_000_000 + b"\n", raw=True)
    assert plain.read()["a"].to_pylist() == ["1", "2" * 2_000_000]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a,b\n1,x\n\n\n2,y", [(1, "x"), (2, "y")]),
        (b"a,b\r\n1,x\r\n\r\n2,y\r\n", [(1, "x"), (2, "y")]),
        (b"a,b\r1,x\r2,y\r", [(1, "x"), (2, "y")]),
        (b"\xef\xbb\xbfa,b\n1,x\n", [(1, "x")]),
        (b'\xef\xbb\xbf"a",b\n1,x\n', [(1, "x")]),
        (b'a,b\n1,5" pipe\n2,"say ""no"""\n', [(1, '5" pipe'), (2, 'say "no"')]),
        (b'a,b\n1,"x\r\ny"\n', [(1, "x\r\ny")]),
        (b'a,b\n1,""\n2,\n', [(1, ""), (2, None)]),
        (b"a,b\n", []),
        (b"a,b", []),
    ],
    ids=[
        "blank lines", "CRLF", "returns alone", "BOM", "BOM and quotes", "stray and doubled quotes",
        "line end in a value", "empty and missing", "header only", "header without an end",
    ],
)  # fmt: skip
def test_lines_and_quotes(tmp_path: Path, data: bytes, expected: list[tuple[Any, ...]]) -> None:
    read = _part(tmp_path / "a.csv", data).read()
    assert [(row["a"], row["b"]) for row in read.to_pylist()] == expected


@pytest.mark.parametrize("columns", [[], ["b"], ["b", "a"]])
def test_only_selected_columns_are_read(tmp_path: Path, columns: list[str]) -> None:
    part = _part(tmp_path / "a.csv", b"a,b\n1,x\n2,y\n")
    read = part.read(columns)
    assert (read.column_names, len(read)) == (columns, 2)


def test_a_column_that_is_not_selected_is_not_converted(tmp_path: Path) -> None:
    part = _part(tmp_path / "a.csv", b"a,b\n1,2\n" + b"3,4\n" * 10)
    wrong = part.columns.set(1, pa.field("b", pa.date32()))
    part = replace(part, columns=wrong)
    assert part.read(["a"])["a"].to_pylist()[:2] == [1, 3]
    with pytest.raises(DataError, match=r"line 2: b: '2' is not a valid date32"):
        part.read()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8-sig", "utf-16", "utf-16-le", "shift_jis"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "名,b\n1,表\n3,4" if encoding == "shift_jis" else "é,b\n1,ü\n3,4"
    name, value = text[0], text.split(",")[2].split("\n")[0]
    for ending, pack in (("", lambda d: d), (".gz", gzip.compress)):
        path = tmp_path / f"a.csv{ending}"
        part = _part(path, pack(text.encode(encoding)), encoding=encoding)
        assert part.read().to_pylist() == [{name: 1, "b": value}, {name: 3, "b": "4"}]
        raw = _part(path, pack(text.encode(encoding)), encoding=encoding, raw=True).read()
        assert raw[name].to_pylist() == ["1", "3"]


def _zipped(data: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/a.csv", data)
    return packed.getvalue()


_PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zip": _zipped,
    "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("ending", list(_PACKED))
def test_compressed_files(tmp_path: Path, ending: str) -> None:
    packed = _PACKED[ending](b"a,b\n" + b"1,x\n" * 1000)
    part = _part(tmp_path / f"a.csv.{ending}", packed)
    assert part.read()["a"].to_pylist() == [1] * 1000
    with pytest.raises(DataError, match=rf"a\.csv\.{ending}.*(truncated|Truncated)"):
        _part(tmp_path / f"a.csv.{ending}", packed[:-20])


def test_types_are_inferred_from_a_sample(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "whole": [1, 2, None], "real": [0.5, 1, 2], "text": ["a", "b", None],
            "day": ["2013-01-01", "2013-02-01", None], "truth": ["true", "false", "true"],
            "time": ["2013-01-01 05:00:00", "2013-01-01 05:00:01", None],
            "zone": ["2013-01-01T10:00:00Z", "2013-01-01T10:00:00Z", None],
            "zip": ["01234x", "7", "8"], "none": [None, None, None],
        }
    ).astype({"whole": "Int64"})  # fmt: skip
    part = _part(tmp_path / "a.csv", frame.to_csv(index=False).encode())
    us = pa.timestamp("us")
    assert part.columns.types == [
        pa.int64(), pa.float64(), pa.large_string(), pa.date32(), pa.bool_(),
        us, pa.timestamp("us", "UTC"), pa.large_string(), pa.null(),
    ]  # fmt: skip
    assert part.read()["whole"].to_pylist() == [1, 2, None]


def test_texts_of_missing_values(tmp_path: Path) -> None:
    part = _part(tmp_path / "a.csv", b"a;b\n1;NA\nNA;y\n2;\n", delimiter=";", null_values=("NA",))
    assert part.read().to_pydict() == {"a": [1, None, 2], "b": [None, "y", ""]}


def test_a_value_of_another_type_after_the_sample_is_named_with_its_line(tmp_path: Path) -> None:
    lines = b"".join(b"%d,%d\n" % (n, n) for n in range(1_500_000))
    assert len(lines) > 20 << 20
    data = b"a,b\n" + lines[:-8] + b"\n"
    middle = data.index(b"\n", len(data) * 5 // 16) + 1  # between the pieces of the sample
    line = data.count(b"\n", 0, middle) + 1
    part = _part(tmp_path / "a.csv", data[:middle] + b"7,seven\n" + data[middle:])
    assert part.columns.types == [pa.int64(), pa.int64()]
    with pytest.raises(DataError, match=rf"a\.csv: line {line}: b: 'seven' is not a valid int64"):
        part.read()


def _records(read: pa.Table) -> Iterator[tuple[Any, ...]]:
    for row in read.to_pylist():
        assert row["_file"].endswith("a.csv")
        yield row["_line"], row["a"], row["_malformed"]


def test_raw_keeps_malformed_lines(tmp_path: Path) -> None:
    data = b'a,b\n1,x\n\n2,y,z\n3,\xff\n4\n"5\n5",v\n6,"w\n7,u\n'
    expected = [
        (2, "1", None), (4, None, "2,y,z"), (5, None, r"3,\xff"), (6, None, "4"),
        (7, "5\n5", None), (9, None, '6,"w'), (10, "7", None),
    ]  # fmt: skip
    part = _part(tmp_path / "a.csv", data, raw=True)
    assert list(_records(part.read())) == expected
    for size in (5, 9, 17):
        pieces = [p.read() for p in _pieces(part, size)]
        assert list(_records(pa.concat_tables(pieces))) == expected


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_lines_are_those_of_an_editor(tmp_path: Path, name: str, ending: str) -> None:
    text = '"a\nb",c\n\n1,x\n"2\n\n2",y\n\n3,\xe9\n4,z\n5'.replace("\n", ending)
    data = text.encode("latin-1")
    data = gzip.compress(data) if name.endswith("gz") else data
    raw = _part(tmp_path / name, data, raw=True)
    pieces = _pieces(raw, 7) if raw.stop >= 0 else [raw]
    read = pa.concat_tables([piece.read() for piece in pieces]).to_pylist()
    assert [row["_line"] for row in read] == [4, 5, 9, 10, 11]
    assert [row["_line"] for row in read if row["_malformed"]] == [9, 11]
    with pytest.raises(DataError, match=r"line 9 is not valid utf-8"):
        inspect(raw.file, CsvOptions())
    with pytest.raises(DataError, match=r"line 11: 1 fields instead of 2: '5'"):
        inspect(raw.file, CsvOptions(encoding="latin-1")).read()


def test_a_line_of_the_sample_is_numbered_in_the_file(tmp_path: Path) -> None:
    data = b"a,b\r\n" + b"".join(b"%07d,x\r\n" % n for n in range(600_000))
    place = data.index(b"0500100")
    data = data[:place] + b"\xe9" + data[place + 1 :]
    with pytest.raises(DataError, match=r"line 500102 is not valid utf-8"):
        _part(tmp_path / "a.csv", data)


def test_raw_columns_may_be_selected(tmp_path: Path) -> None:
    read = _part(tmp_path / "a.csv", b"a,b\n1,x\n2\n", raw=True).read(["_line", "b"])
    assert read.to_pydict() == {"_line": [2, 3], "b": ["x", None]}
