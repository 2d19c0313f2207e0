"""Malformed files: an error that names file and place, and no partial output."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks._figures import Report
from raysys import cluster
from raysys.console import say
from raysys.data import Column, Schema, read, validate
from raysys.errors import DataError
from raysys.storage import Storage

_WIDE = 10_000


def run(report: Report, quick: bool) -> None:
    """Read each kind of file, and write over the result of an earlier read."""
    cluster.connect()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        storage = Storage(folder / "root")
        read(_good(folder)).write_parquet(storage, "out")
        before = _content(folder / "root" / "out")
        failed = 0
        for name, (path, place) in _cases(folder).items():
            try:
                read(path).write_parquet(storage, "out")
                message = "no error"
            except DataError as error:
                message = str(error)
            unchanged = _content(folder / "root") == {Path("out") / k: v for k, v in before.items()}
            passed = unchanged and all(part in message for part in (Path(path).name, *place))
            failed += not passed
            say(f"malformed, {name}: {message}" + ("" if passed else "  <-- FAILED"))
        report.add("malformed: without an error of file and place", failed, "files", below=1)
        lost = _lost_lines(folder)
        report.add("malformed: broken lines that quarantine lost", lost, "lines", below=1)
        columns = read(_wide(folder)).write_parquet(storage, "wide")
        report.add(f"malformed: rows of {_WIDE} columns that were read", columns, "rows", above=99)


def _good(folder: Path) -> Path:
    path = folder / "good.csv"
    path.write_text("a,b\n1,x\n2,y\n")
    return path


def _cases(folder: Path) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Path by kind, and texts that the error must contain."""
    lines = [f"{n},value {n}" for n in range(1000)]
    ragged = [*lines[:700], "700,a,b", *lines[701:]]
    (folder / "ragged.csv").write_text("\n".join(["a,b", *ragged]))
    wrong = "\n".join(["a,b", *lines[:500], "500,caf\xe9", *lines[501:]])
    (folder / "latin.csv").write_bytes(wrong.encode("latin-1"))
    typed = "\n".join(["a,b", *(str(n) + ",1" for n in range(900_000)), "900001,one"])
    (folder / "typed.csv").write_text(typed)
    (folder / "empty.csv").write_text("")
    table = pa.table({"a": range(50_000)})
    pq.write_table(table, folder / "complete.parquet")
    complete = (folder / "complete.parquet").read_bytes()
    (folder / "truncated.parquet").write_bytes(complete[: len(complete) // 2])
    mixed = folder / "mixed"
    mixed.mkdir()
    pq.write_table(table, mixed / "1.parquet")
    pq.write_table(pa.table({"a": ["x"]}), mixed / "2.parquet")
    (folder / "broken.jsonl").write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    return {
        "ragged CSV": (folder / "ragged.csv", ("line 702", "3 fields")),
        "another encoding": (folder / "latin.csv", ("line 502",)),
        "a text among numbers, late": (folder / "typed.csv", ("line 900002", "one")),
        "empty": (folder / "empty.csv", ()),
        "truncated Parquet": (folder / "truncated.parquet", ()),
        "a folder of mixed schemas": (mixed, ("2.parquet", "'a'")),
        "broken JSON": (folder / "broken.jsonl", ("2",)),
    }


def _lost_lines(folder: Path) -> int:
    """Number of ragged and undecodable lines that are lost in validation."""
    schema = Schema(name="lines", columns={"a": Column(type="int64"), "b": Column(type="string")})
    quarantined = [
        len(validate(read(folder / name, raw=True), schema).quarantine)
        for name in ("ragged.csv", "latin.csv")
    ]
    return sum(rows != 1 for rows in quarantined)


def _wide(folder: Path) -> Path:
    path = folder / "wide.csv"
    rows = [",".join(str(row * column) for column in range(_WIDE)) for row in range(100)]
    path.write_text("\n".join([",".join(f"c{n}" for n in range(_WIDE)), *rows]) + "\n")
    return path


def _content(folder: Path) -> dict[Path, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder): file.read_bytes() for file in files}
