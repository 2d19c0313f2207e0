"""Malformed files: errors that name file and place, raw reads, and no partial output."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.data import Table, read
from raysys.data._lazy_plan import LazyOperation
from raysys.data.readers import _csv
from raysys.errors import DataError
from raysys.storage import Storage

pytestmark = pytest.mark.usefixtures("ray_cluster")
_ROWS = pa.table({"a": list(range(1000)), "b": [f"text {n}" for n in range(1000)]})


def _parquet(path: Path) -> bytes:
    pq.write_table(_ROWS, path / "whole", row_group_size=100)
    return _removed(path / "whole")


def _arrow(path: Path) -> bytes:
    with pa.OSFile(str(path / "whole"), "wb") as file, pa.ipc.new_file(file, _ROWS.schema) as out:
        out.write_table(_ROWS, 100)
    return _removed(path / "whole")


def _removed(path: Path) -> bytes:
    data = path.read_bytes()
    path.unlink()
    return data


_BAD_FILES: dict[str, tuple[str, bytes | Callable[[Path], bytes], str]] = {
    "truncated Parquet": ("x.parquet", lambda p: _parquet(p)[:-100], "cannot be read as Parquet"),
    "CSV as Parquet": ("x.parquet", b"a,b\n1,2\n", "cannot be read as Parquet"),
    "empty Parquet": ("x.parquet", b"", "cannot be read as Parquet"),
    "Parquet with a hole": (
        "x.parquet", lambda p: (d := _parquet(p))[:100] + b"\xff" * 2000 + d[2100:],
        "cannot be read as Parquet",
    ),
    "truncated Arrow": ("x.arrow", lambda p: _arrow(p)[:-100], "cannot be read as Arrow"),
    "empty CSV": ("x.csv", b"", "empty file"),
    "blank CSV": ("x.csv", b"\n\n", "empty file"),
    "header only": ("x.csv", b"a,b\n", "columns without rows"),
    "more fields": ("x.csv", b"a,b\n1,2\n\n3,4,5\n", "line 4: 3 fields instead of 2: '3,4,5'"),
    "fewer fields": ("x.csv", b'a,b\n"1\n1",2\n3\n', "line 4: 1 fields instead of 2: '3'"),
    "a column twice": ("x.csv", b"a,b,a\n1,2,3\n", r"duplicate columns \['a'\]"),
    "not UTF-8": ("x.csv", b"a,b\n1,x\n2,\xe9\n", r"line 3 is not valid utf-8 \(byte 0xe9\)"),
    "a header in Latin-1": ("x.csv", b"\xe9,b\n1,x\n", "line 1: invalid header"),
    "UTF-16": ("x.csv", "a,b\n1,2\n".encode("utf-16"), "line 1: invalid header"),
    "an open quote": ("x.csv", b'a,b\n1,x\n2,"y\n3,z\n', """line 3: a quote opens in '2,"y"""),
    "truncated gzip": ("x.csv.gz", pa.compress(b"a,b\n" * 99, "gzip", True)[:-9], "decompr"),
    "CSV as gzip": ("x.csv.gz", b"a,b\n1,2\n", "cannot be decompressed"),
    "CSV as zip": ("x.csv.zip", b"a,b\n1,2\n", "not a zip file"),
    "empty JSON": ("x.jsonl", b"\n", "empty file"),
    "broken JSON": ("x.jsonl", b'{"a": 1}\n\n{"a": \n', "line 3: "),
    "a JSON list": ("x.json", b'[{"a": 1}]\n', "line 1: .*Give one JSON object per line"),
    "JSON of other types": ("x.jsonl", b'{"a": 1}\n{"a": "x"}\n', "line 2: .*Field a has"),
    "an unknown format": ("x.dat", b"a\n1\n", "unknown format"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(_BAD_FILES))
def test_a_bad_file_is_named_with_the_place(kind: str, tmp_path: Path) -> None:
    name, data, message = _BAD_FILES[kind]
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data(tmp_path))
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name).to_arrow()
    assert name in str(caught.value)
    assert len(str(caught.value)) < 700


def test_late_malformed_json_lines_are_named_with_their_number(tmp_path: Path) -> None:
    lines = [json.dumps({"a": n, "b": "x" * 200}) for n in range(25_000)]
    lines[24_000] = '{"a": "text"}'
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines))
    with pytest.raises(
        DataError, match=r"a\.jsonl: line 48001: .*text.* does not fit the columns a: "
    ):
        read(tmp_path / "a.jsonl").to_arrow()
    raw = read(tmp_path / "a.jsonl", raw=True).filter(pl.col("_malformed").is_not_null())
    assert raw.select(["_line", "_malformed"]).to_arrow().to_pylist() == [
        {"_line": 48_001, "_malformed": '{"a": "text"}'}
    ]


def test_raw_json_keeps_lines_of_other_types(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": "x"}\n\n{"a": \n{"a": 3}\n[1]\n')
    rows = read(tmp_path / "a.jsonl", raw=True).to_arrow().to_pylist()
    assert [(row["_line"], row["a"], row["_malformed"]) for row in rows] == [
        (1, 1, None), (2, None, '{"a": "x"}'), (4, None, '{"a": '), (5, 3, None), (6, None, "[1]"),
    ]  # fmt: skip


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_json_objects_have_the_line_where_they_start(tmp_path: Path, ending: bytes) -> None:
    data = b'{"a": 1}\n\n {"a": 2} {"a": 3}\n{"a":\n\n4\n}\n{"a": 5}'.replace(b"\n", ending)
    (tmp_path / "a.jsonl.gz").write_bytes(pa.compress(data, "gzip", True))
    rows = read(tmp_path / "a.jsonl.gz", raw=True).to_arrow().to_pylist()
    assert [(row["a"], row["_line"]) for row in rows] == [(1, 1), (2, 3), (3, 3), (4, 4), (5, 8)]


def test_a_folder_of_mixed_schemas(tmp_path: Path) -> None:
    pq.write_table(_ROWS, tmp_path / "a.parquet")
    pq.write_table(_ROWS.rename_columns(["a", "c"]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: lacks the columns \['b'\] and adds \['c'\]"):
        read(tmp_path)
    pq.write_table(pa.table({"a": ["1"], "b": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(
        DataError, match=r"b\.parquet: column 'a' is .*string, but .* in .*a\.parquet"
    ):
        read(tmp_path)
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="files of several formats"):
        read(tmp_path)


def test_ten_thousand_columns(tmp_path: Path) -> None:
    names = [f"column {n}" for n in range(10_000)]
    rows = [names, *([str(n + row) for n in range(10_000)] for row in range(3))]
    (tmp_path / "a.csv").write_text("\n".join(",".join(row) for row in rows))
    table = read(tmp_path / "a.csv")
    assert table.select(["column 9999", "column 0"]).to_arrow().to_pydict() == {
        "column 9999": [9999, 10_000, 10_001], "column 0": [0, 1, 2],
    }  # fmt: skip
    with pytest.raises(DataError) as caught:
        table.filter(pl.col("nope") > 1)
    assert "and 9980 more" in str(caught.value)
    assert len(str(caught.value)) < 1000


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _stored(storage: Storage) -> dict[str, bytes]:
    Table.from_arrow(_ROWS, 400).write_parquet(storage, "out")
    return _files(Path(storage.root))


@pytest.mark.parametrize("partition_by", [[], ["a"]])
def test_a_failed_read_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partition_by: list[str]
) -> None:
    monkeypatch.setattr(_csv, "PART_BYTES", 4000)
    storage = Storage(tmp_path / "stored")
    before = _stored(storage)
    lines = [f"{n % 7},{n}" for n in range(5000)]
    lines[3000] = "1,2,3"
    (tmp_path / "a.csv").write_text("\n".join(["a,b", *lines]))
    table = read(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"a\.csv: line 3002: 3 fields"):
        table.write_parquet(storage, "out", partition_by=partition_by)
    assert _files(Path(storage.root)) == before
    assert [path.name for path in Path(storage.root).iterdir()] == ["out"]


def test_a_refused_write_leaves_the_old_folder(storage: Storage) -> None:
    before = _stored(storage)
    missing = Table.from_arrow(pa.table({"a": ["x", None] * 3, "b": range(6)}), 2)
    with pytest.raises(DataError, match="contain missing values"):
        missing.write_parquet(storage, "out", partition_by=["a"])
    with pytest.raises(DataError, match=r"no such columns: \['q'\]"):
        missing.write_parquet(storage, "out", partition_by=["q"])
    assert _files(Path(storage.root)) == before


def test_a_killed_writer_leaves_no_partial_file(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "stored")
    mark = tmp_path / "killed"

    def kill_once(frame: pl.LazyFrame) -> pl.LazyFrame:
        with Storage(_staged(storage)).new_file("half") as half:
            half.write_bytes(b"half")
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return frame

    table = Table.from_arrow(_ROWS, 500)
    step = LazyOperation("kill", lambda f: kill_once(f) if _staged(storage) else f)
    table._planned(step).write_parquet(storage, "out")
    assert mark.exists()
    assert sorted(_files(Path(storage.root) / "out")) == [
        "half", "part-00000.parquet", "part-00001.parquet",
    ]  # fmt: skip
    assert [path.name for path in Path(storage.root).iterdir()] == ["out"]


def _staged(storage: Storage) -> Any:
    """The folder of a write in progress."""
    return next(Path(storage.root).glob(".out.*.partial"), None)
