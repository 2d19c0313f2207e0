"""Reading files of all formats, lazily, and writing them."""

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.fs
import pyarrow.json
import pyarrow.parquet as pq
import pytest
import ray

from raysys.data import Lineage, Table, _block_files, read
from raysys.data._lazy_plan import LazyOperation, evaluate
from raysys.data.readers import _csv
from raysys.data.readers import _parquet_arrow as _formats
from raysys.data.readers._files import find
from raysys.data.readers._json_lines import inspect_json
from raysys.data.readers._parquet_arrow import ParquetPart, parquet_parts
from raysys.data.readers._read import _common_schema, _parts
from raysys.errors import DataError
from raysys.storage import Storage

_ZONE = dt.UTC
_ROWS = pa.table({
    "whole": pa.array([1, None, 3], pa.int32()),
    "unsigned": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "real": pa.array([0.5, float("nan"), None]),
    "text": pa.array(["a", None, "ü"]),
    "bytes": pa.array([b"\0", None, b""]),
    "truth": pa.array([True, None, False]),
    "day": pa.array([dt.date(2013, 1, 1), None, dt.date(1969, 1, 1)]),
    "time": pa.array([dt.datetime(2013, 1, 1, 5), None, None], pa.timestamp("us")),
    "seconds": pa.array([dt.datetime(2013, 1, 1, 5), None, None], pa.timestamp("s")),
    "nanoseconds": pa.array([1, None, -1], pa.timestamp("ns")),
    "zone": pa.array([dt.datetime(2013, 1, 1, 5, tzinfo=_ZONE), None, None],
                     pa.timestamp("us", "Europe/Berlin")),
    "decimal": pa.array([Decimal("1.50"), None, Decimal("-2.25")], pa.decimal128(10, 2)),
    "codes": pa.array(["x", None, "x"]).dictionary_encode(),
    "list": pa.array([[1, None], None, []], pa.list_(pa.int64())),
    "vector": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
    "struct": pa.array([{"a": 1, "b": ["q"]}, None, {"a": None, "b": None}],
                       pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))])),
    "nothing": pa.nulls(3),
})  # fmt: skip


def _file_parts(path: Any, kind: Any, **options: Any) -> list[Any]:
    return _parts(kind, find(path), _csv.CsvOptions(**options))


def _write_arrow(table: pa.Table, path: Path, rows: int = 2) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, rows)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_every_type_round_trips(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(_block_files.readable(_ROWS), path, row_group_size=2)
    else:
        _write_arrow(_ROWS, path)
    parts = _file_parts(path, kind)
    schema = _common_schema(parts, {})
    assert schema.field("seconds").type.unit != "s"  # polars has no seconds
    assert schema.field("text").type == schema.field("nothing").type == pa.large_string()
    for names in (None, ["list", "text"], []):
        steps = (
            []
            if names is None
            else [LazyOperation("select", lambda f: f, (), columns=tuple(names))]
        )
        for part in parts:
            block = evaluate(part, steps)
            assert len(block) == 3
            expected = _ROWS.select(_ROWS.column_names if names is None else names)
            for name in block.column_names:
                assert repr(block[name].to_pylist()) == repr(expected[name].to_pylist()), name


def _steps(*changes: tuple[str, Any]) -> list[LazyOperation]:
    return [
        LazyOperation(name, lambda frame, change=change: change(frame)) for name, change in changes
    ]


def test_a_plan_reads_only_needed_columns_and_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pa.table({name: list(range(100)) for name in "abcd"})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=10)
    [part] = parquet_parts(find(tmp_path / "a.parquet")[0], False)
    seen: list[tuple[tuple[int, ...], tuple[str, ...]]] = []
    rows_of = ParquetPart._rows

    def watch(self: Any, source: Any, groups: Sequence[int], names: Sequence[str]) -> pa.Table:
        seen.append((tuple(groups), tuple(names)))
        return rows_of(self, source, groups, names)

    monkeypatch.setattr(ParquetPart, "_rows", watch)
    steps = _steps(
        ("filter", lambda frame: frame.filter((pl.col("a") >= 35) & (pl.col("a") < 52))),
        ("select", lambda frame: frame.select(e=pl.col("b") + 1)),
    )
    block = evaluate(part, steps)
    assert block["e"].to_pylist() == list(range(36, 53))
    read_rest = {group for groups, names in seen for group in groups if "b" in names}
    assert read_rest == {3, 4, 5}
    assert {name for _, names in seen for name in names} == {"a", "b"}
    seen.clear()
    evaluate(part, _steps(("count", lambda frame: frame.select(pl.len()))))
    assert len({name for _, names in seen for name in names}) <= 1
    assert evaluate(part, _steps(("none", lambda f: f.filter(pl.col("a") > 500)))).num_rows == 0


def test_a_csv_column_that_no_step_needs_is_not_converted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,c\n1,x,2\n5,y,3\n")
    [part] = _file_parts(tmp_path / "a.csv", "csv")
    wrong = part.columns.set(1, pa.field("b", pa.int64()))
    part = replace(part, columns=wrong)
    steps = _steps(("f", lambda f: f.filter(pl.col("a") > 2)), ("s", lambda f: f.select("c")))
    assert evaluate(part, steps).to_pydict() == {"c": [3]}
    counted = evaluate(part, _steps(("n", lambda f: f.select(n=pl.len()))))
    assert counted.to_pydict() == {"n": [2]}


def test_columns_of_files_may_differ_in_order_and_width(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,c\n1,2,\n")
    (tmp_path / "b.csv").write_text("b,a,c\n3.5,4,x\n")
    (tmp_path / "c.csv").write_text("c,b,a\n")
    parts = _file_parts(tmp_path, "csv")
    schema = _common_schema(parts, {})
    assert schema.types == [pa.int64(), pa.float64(), pa.large_string()]
    read_all = [replace(part, columns=schema).read().to_pylist() for part in parts]
    assert read_all == [
        [{"a": 1, "b": 2.0, "c": None}], [{"a": 4, "b": 3.5, "c": "x"}], [],
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_json_lines(tmp_path: Path, ending: str) -> None:
    rows = [
        {"a": 1, "t": "2013-01-01 05:00:00", "l": [1, 2], "s": {"x": ["q"]}, "n": None},
        {"a": 2, "l": [], "s": None},
    ]
    text = "\n".join(["", *map(json.dumps, rows), "   ", json.dumps({"a": 3})])
    path = tmp_path / f"a.jsonl{ending}"
    with pa.output_stream(path) as stream:
        stream.write(text.encode())
    part = inspect_json(find(path)[0], False)
    part = replace(part, columns=_common_schema([part], {}))
    rows_read = part.read().to_pylist()
    assert [row["a"] for row in rows_read] == [1, 2, 3]
    assert rows_read[0]["t"] == dt.datetime(2013, 1, 1, 5)
    assert [row["l"] for row in rows_read] == [[1, 2], [], None]
    assert [row["s"] for row in rows_read] == [{"x": ["q"]}, None, None]
    assert part.read(["l", "a"]).column_names == ["l", "a"]


def test_paths_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "a.csv", "b[1].csv", "sub/c.csv", "sub/deep/d.csv", ".hidden.csv", "_SUCCESS",
        "_old/e.csv", "year=2013/_k=1/f.csv", "with space/g h.csv",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a\n1\n")

    def listed(paths: Any) -> list[str]:
        return [str(Path(f.path).relative_to(tmp_path)) for f in find(paths)]

    everything = [
        "a.csv", "b[1].csv", "sub/c.csv", "sub/deep/d.csv", "with space/g h.csv",
        "year=2013/_k=1/f.csv",
    ]  # fmt: skip
    assert listed(tmp_path) == listed(f"{tmp_path}/") == everything
    assert listed(f"file://{tmp_path}") == everything
    assert listed(tmp_path / "*.csv") == ["a.csv", "b[1].csv"]
    assert listed(tmp_path / "b[1].csv") == ["b[1].csv"]
    assert listed(f"file://{tmp_path}/with space/*.csv") == ["with space/g h.csv"]
    assert listed(tmp_path / "**" / "*.csv") == everything
    assert listed(tmp_path / "sub" / "**") == ["sub/c.csv", "sub/deep/d.csv"]
    assert listed(tmp_path / "?.csv") == listed(tmp_path / "[!b]*.csv") == ["a.csv"]
    assert listed([tmp_path / "sub", tmp_path / "a.csv"]) == [
        "sub/c.csv", "sub/deep/d.csv", "a.csv",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert listed("sub/*.csv") == ["sub/c.csv"]
    for nothing in ("nope.csv", "*.nope", "nope/*.csv", "file:///nope"):
        with pytest.raises(DataError, match=r"no (such )?file"):
            find(nothing)
    with pytest.raises(DataError, match="nope://"):
        find("nope://bucket/a.csv")
    keys = {f.path: f.keys() for f in find(tmp_path)}
    assert keys[str(tmp_path / "year=2013/_k=1/f.csv")] == {"year": "2013", "_k": "1"}
    assert find(tmp_path / "year=2013")[0].keys() == {"_k": "1"}
    assert find(tmp_path / "year=*/*/f.csv")[0].keys() == {"year": "2013", "_k": "1"}


def test_uris_of_other_file_systems() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/raysys/k=1/a.csv", b"a,b\n1,x\n2,y\n")
    memory.pipe("/raysys/k=2/a.csv.gz", pa.compress(b"a,b\n3,z\n", "gzip", asbytes=True))
    try:
        parts = _file_parts("memory://raysys", "csv")
        schema = _common_schema(parts, {})
        rows = [row for p in parts for row in replace(p, columns=schema).read().to_pylist()]
        assert rows == [
            {"a": 1, "b": "x", "k": 1}, {"a": 2, "b": "y", "k": 1}, {"a": 3, "b": "z", "k": 2},
        ]  # fmt: skip
        assert [p.file.name for p in _file_parts("memory://raysys/k=*/*.csv", "csv")] == [
            "memory:///raysys/k=1/a.csv"
        ]
    finally:
        memory.rm("/raysys", recursive=True)


_KEYS = ["plain", "a/b", "100%", "with space", "x=y", "ü", "", ".", "..", "_hidden", "7", "c\\d"]


@pytest.mark.usefixtures("ray_cluster")
def test_folders_named_after_values_round_trip(tmp_path: Path, storage: Storage) -> None:
    rows = pa.table({
        "key": _KEYS * 2,
        "n": pa.array([5, -3] * len(_KEYS)),
        "v": range(2 * len(_KEYS)),
    })  # fmt: skip
    table = Table.from_arrow(rows, 7)
    assert table.write_parquet(storage, "out", partition_by=["key", "n"]) == len(rows)
    back = read(tmp_path / "out")
    assert back.schema.names == ["v", "key", "n"]
    assert back.schema.field("n").type == pa.int64()
    got = back.sort("v").to_arrow().to_pylist()
    assert got == rows.select(["v", "key", "n"]).to_pylist()
    some = read(tmp_path / "out").filter((pl.col("key") == "a/b") & (pl.col("n") < 0))
    assert some.select(["v"]).to_arrow().to_pydict() == {"v": [1, 13]}
    typed = read(tmp_path / "out", types={"n": pa.string()}).select(["n"])
    assert set(typed.to_arrow()["n"].to_pylist()) == {"5", "-3"}


@pytest.mark.usefixtures("ray_cluster")
def test_parquet_round_trip_keeps_rows_types_and_fingerprint(
    tmp_path: Path, storage: Storage
) -> None:
    rows = _ROWS.drop_columns(["nothing", "seconds"])
    vectors = pa.array([[1.0, 2.0], [0.0, 1.0], [3.0, 4.0]], pa.list_(pa.float32(), 2))
    rows = rows.set_column(rows.column_names.index("vector"), "vector", vectors)
    table = Table.from_arrow(rows, 2)
    table.write_parquet(storage, "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "part-00000.parquet", "part-00001.parquet",
    ]  # fmt: skip
    back = read(tmp_path / "out")
    assert repr(back.to_arrow().to_pylist()) == repr(rows.to_pylist())
    assert back.fingerprint() == table.fingerprint()
    table.write_parquet(storage, "out")  # again, over the first
    assert len(read(tmp_path / "out")) == 3


@pytest.mark.usefixtures("ray_cluster")
def test_lazy_and_kept_tables_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_csv, "PART_BYTES", 500)
    frame = pd.DataFrame({"a": range(200), "b": [f'say "{n}"\nor' for n in range(200)]})
    frame.to_csv(tmp_path / "a.csv", index=False)

    def chain(table: Table) -> Table:
        table = table.with_columns(c=pl.col("a") % 7).filter(pl.col("c") < 3)
        return table.rename({"b": "text"}).select(["text", "c"])

    lazy, stored = chain(read(tmp_path / "a.csv")), chain(read(tmp_path / "a.csv").materialize())
    assert len(stored.blocks()) > 5
    batches = pa.concat_tables(list(lazy.iter_batches(33)))
    expected = frame[frame["a"] % 7 < 3]
    assert batches["text"].to_pylist() == expected["b"].tolist()
    assert lazy.schema == stored.schema == batches.schema == lazy.to_arrow().schema
    assert lazy.to_arrow().equals(stored.to_arrow())
    assert lazy.fingerprint() == stored.fingerprint()
    back = ray.cloudpickle.loads(ray.cloudpickle.dumps(read(tmp_path / "a.csv", ["a"])))
    assert back.to_arrow()["a"].to_pylist() == list(range(200))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("text", ["plain", 'stray 5" and', '"quoted, ""twice"" \n and"'])
def test_raw_rows_have_their_lines_in_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(_csv, "PART_BYTES", 300)
    lines = [f"{n},{text}" + (",more" if n % 10 == 3 else "") for n in range(100)]
    betweens = {"a.csv": "\n", "b.csv": "\n\n", "c.csv": "\r\n"}
    expected = []
    for name, between in betweens.items():
        (tmp_path / name).write_bytes((between.join(["a,b", *lines]) + between).encode())
        step = text.count("\n") + between.count("\n")
        expected += [(name, str(n), between.count("\n") + 1 + n * step) for n in range(100)]
    table = read(tmp_path, raw=True)
    assert len(table.blocks()) > 6
    rows = table.to_arrow().to_pylist()
    places = [
        (Path(row["_file"]).name, row["a"] or row["_malformed"].split(",")[0], row["_line"])
        for row in rows
    ]
    assert places == expected
    assert sum(row["_malformed"] is not None for row in rows) == 30
    chosen = read(tmp_path, ["a"], raw=True)
    assert chosen.schema.names == ["a", "_file", "_line", "_malformed"]


@pytest.mark.usefixtures("ray_cluster")
def test_types_replace_wrong_guesses(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("zip,when\n1234,1\n")
    (tmp_path / "b.csv").write_text("zip,when\nA1,2\n")
    with pytest.raises(DataError, match=r"b\.csv: column 'zip' is .*string, but int64 in .*a\.csv"):
        read(tmp_path)
    table = read(tmp_path, types={"zip": pa.string(), "when": pa.timestamp("s")})
    assert table.schema.field("when").type == pa.timestamp("us")
    with pytest.raises(DataError, match=r"\.csv: line 2: when: '.' is not a valid timestamp"):
        table.to_arrow()
    assert table.select(["zip"]).to_arrow()["zip"].to_pylist() == ["1234", "A1"]
    with pytest.raises(DataError, match=r"unknown columns \['zap'\] in types"):
        read(tmp_path, types={"zip": pa.string(), "zap": pa.string()})
    raw = read(tmp_path, raw=True).to_arrow()
    assert raw["zip"].to_pylist() == ["1234", "A1"]


@pytest.mark.usefixtures("ray_cluster")
def test_vectors_with_missing_values_round_trip(tmp_path: Path, storage: Storage) -> None:
    Table.from_arrow(_ROWS.select(["vector"]), 2).write_parquet(storage, "out")
    back = read(tmp_path / "out").to_arrow()["vector"]
    assert (back.type, back.to_pylist()) == (
        pa.large_list(pa.float32()), _ROWS["vector"].to_pylist()
    )  # fmt: skip


def test_parts_are_of_about_a_blocks_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pa.table({"a": list(range(1000))})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=100, use_dictionary=False)
    _write_arrow(rows, tmp_path / "a.arrow", 100)
    monkeypatch.setattr(_formats, "BLOCK_BYTES", 2500)
    for kind in ("parquet", "arrow"):
        parts = _file_parts(tmp_path / f"a.{kind}", kind, raw=True)
        assert 3 <= len(parts) <= 6
        read_all = pa.concat_tables([part.read() for part in parts])
        assert read_all["a"].to_pylist() == read_all["_row"].to_pylist() == list(range(1000))


def test_the_lineage_of_files_depends_on_the_options(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    files = find(tmp_path / "a.csv")
    ids = {Lineage.of_files(files, "csv", {"delimiter": mark}).id for mark in ",;\t"}
    assert len(ids) == 3
