"""Cost of validation: flights of which one in a hundred is broken, in ten ways."""

import io
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from benchmarks._figures import Report
from raysys import cluster
from raysys.data import Schema, Table, read, validate
from raysys.storage import Storage

SCHEMA = Schema.from_yaml("""
name: flights
columns:
  year: {type: int64, min: 2013, max: 2013}
  month: {type: int64, min: 1, max: 12}
  day: {type: int64, min: 1, max: 31}
  dep_time: {type: int64, min: 0, max: 2400}
  sched_dep_time: {type: int64, min: 0, max: 2400}
  dep_delay: {type: int64, min: -120, max: 2000, nullable: true}
  arr_time: {type: int64, min: 0, max: 5000}
  sched_arr_time: {type: int64, min: 0, max: 2400}
  arr_delay: {type: int64, min: -120, max: 2000, nullable: true}
  carrier: {type: string, allowed: [AA, B6, DL, EV, UA]}
  flight: {type: int64, min: 0}
  tailnum: {type: string, pattern: 'N[0-9A-Z]+', nullable: true}
  origin: {type: string, allowed: [EWR, JFK, LGA]}
  dest: {type: string, foreign_key: airports.faa}
  air_time: {type: float64, min: 0, nullable: true}
  distance: {type: int64, min: 0}
  hour: {type: int64, min: 0, max: 23}
  minute: {type: int64, min: 0, max: 59}
  time_hour: {type: 'timestamp[us, UTC]', min: 2013-01-01, max: 2014-01-01}
unique: [[time_hour, carrier, flight]]
rules: {lands after it starts: arr_time > dep_time}
""")
AIRPORTS = [f"{a}{b}X" for a in "ABCDEFGHIJ" for b in "ABCDEFGHIJ"]
CHUNK = 300_000
# The column that each way breaks, what it is made, and how the reason starts.
WAYS = [
    ("dep_time", "noon", "dep_time: 'noon' is not a valid int64"),
    ("dep_delay", "2001", "dep_delay: 2001 exceeds max 2000"),
    ("tailnum", "n-12", "tailnum: 'n-12' does not match pattern N[0-9A-Z]+"),
    ("distance", "", "distance: missing"),
    ("carrier", "ZZ", "carrier: 'ZZ' is not an allowed value"),
    ("dest", "ZZZ", "dest: 'ZZZ' is not in airports.faa"),
    ("arr_time", "0", "rule 'lands after it starts' fails: arr_time=0, dep_time="),
    (
        "time_hour",
        "2013-02-30T05:00:00Z",
        "time_hour: '2013-02-30T05:00:00Z' is not a valid timestamp",
    ),
    ("", "a field too few", "malformed line"),
    ("", "the key of row 0", "duplicate time_hour, carrier, flight"),
]


def write_csv(path: Path, rows: int, *, broken: bool) -> dict[int, str]:
    """Write flights; how the reasons of the broken ones start, by row number."""
    reasons: dict[int, str] = {}
    with path.open("wb") as file:
        for first in range(0, rows, CHUNK):
            columns, ways = _flights(first, min(CHUNK, rows - first), broken)
            text = io.BytesIO()
            header = pyarrow.csv.WriteOptions(include_header=first == 0, quoting_style="none")
            pyarrow.csv.write_csv(pa.table(columns), text, header)
            lines = text.getvalue().split(b"\n")
            for row, way in ways.items():
                reasons[first + row] = WAYS[way][2]
                if way == 8:
                    line = row + (first == 0)
                    lines[line] = lines[line].rpartition(b",")[0]
            file.write(b"\n".join(lines))
    return reasons


def _flights(first: int, rows: int, broken: bool) -> tuple[dict[str, np.ndarray], dict[int, int]]:
    """Columns as text, and the way in which each broken row is broken."""
    rng = np.random.default_rng(first)
    hour, minute = rng.integers(5, 23, rows), rng.integers(0, 60, rows)
    month, day = rng.integers(1, 13, rows), rng.integers(1, 29, rows)
    starts, flight = hour * 100 + minute, np.arange(first, first + rows)
    delay = rng.normal(8, 30, rows).clip(-100, 1500).astype(int)
    columns = {
        "year": np.full(rows, 2013), "month": month, "day": day, "dep_time": starts,
        "sched_dep_time": starts, "dep_delay": delay,
        "arr_time": starts + rng.integers(1, 999, rows),
        "sched_arr_time": rng.integers(0, 2400, rows), "arr_delay": delay - 5,
        "carrier": rng.choice(["AA", "B6", "DL", "EV", "UA"], rows), "flight": flight,
        "tailnum": np.char.add("N", rng.integers(10_000, 14_000, rows).astype(str)),
        "origin": rng.choice(["EWR", "JFK", "LGA"], rows), "dest": rng.choice(AIRPORTS, rows),
        "air_time": rng.integers(20, 600, rows), "distance": rng.integers(80, 5000, rows),
        "hour": hour, "minute": minute,
        "time_hour": [f"2013-{m:02}-{d:02}T{h:02}:00:00Z"
                      for m, d, h in zip(month, day, hour, strict=True)],
    }  # fmt: skip
    texts = {
        name: np.asarray(values).astype(str).astype(object) for name, values in columns.items()
    }
    for name in ("dep_delay", "arr_delay", "air_time"):
        texts[name][rng.random(rows) < 0.02] = ""
    chosen = rng.choice(np.arange(1, rows), rows // 100 if broken else 0, replace=False)
    ways = {int(row): number % len(WAYS) for number, row in enumerate(chosen)}
    for row, way in ways.items():
        column, value, _ = WAYS[way]
        if column:
            texts[column][row] = value
        if way == 9:
            for name in ("time_hour", "carrier", "flight"):
                texts[name][row] = texts[name][0]
    return texts, ways


def without_validation(csv: Path, storage: Storage, *, materialize: bool) -> None:
    """Read with the types, and write, which a broken row would prevent.

    Args:
        csv: File to read.
        storage: Destination.
        materialize: Materialize the Table in the object store, as validation does.
    """
    table = read(csv, types={name: _arrow(name) for name in SCHEMA.columns})
    (table.materialize() if materialize else table).write_parquet(storage, "unchecked")


def _arrow(name: str) -> pa.DataType:
    kinds = {"string": pa.large_string(), "int64": pa.int64(), "float64": pa.float64()}
    return kinds.get(SCHEMA.columns[name].type, pa.timestamp("us", "UTC"))


def with_validation(csv: Path, storage: Storage, airports: Table) -> None:
    """Read as text, validate, write valid rows and the quarantine."""
    result = validate(read(csv, raw=True), SCHEMA, tables={"airports": airports})
    result.valid.write_parquet(storage, "valid")
    result.quarantine.write_parquet(storage, "quarantine")


def run(report: Report, quick: bool) -> None:
    """Time both ways in turns, and look for every row."""
    rows, repeats = (300_000, 3) if quick else (3_000_000, 3)
    with tempfile.TemporaryDirectory() as temporary:
        csv, storage = Path(temporary) / "flights.csv", Storage(temporary)
        clean = Path(temporary) / "clean.csv"
        write_csv(clean, rows, broken=False)
        reasons = write_csv(csv, rows, broken=True)
        cluster.connect()
        airports = Table.from_arrow(pa.table({"faa": AIRPORTS}))
        ways = [
            partial(without_validation, clean, storage, materialize=False),
            partial(without_validation, clean, storage, materialize=True),
            partial(with_validation, csv, storage, airports),
        ]
        seconds: list[list[float]] = [[], [], []]
        for _ in range(repeats + 1):  # in the first, workers start
            for way, measured in zip(ways, seconds, strict=True):
                started = time.perf_counter()
                way()
                measured.append(time.perf_counter() - started)
        bare, stored, validated = (statistics.median(measured[1:]) for measured in seconds)
        quarantine = pl.read_parquet(f"{temporary}/quarantine/*.parquet")
        rows_of = quarantine["_line"] - 2  # after the header
        actual = dict(zip(rows_of, quarantine["_reason"], strict=True))
        valid = pl.read_parquet(f"{temporary}/valid/*.parquet", columns=["flight"])
    missed = sum(not actual.get(row, "").startswith(start) for row, start in reasons.items())
    expected = np.setdiff1d(np.arange(rows), list(reasons))  # a valid row's flight is its number
    lost = len(np.setdiff1d(expected, valid["flight"].to_numpy()))
    report.add(f"quarantine: {rows:,} rows written without validation", bare, "s")
    report.add("quarantine: the same with validation", validated, "s")
    report.add("quarantine: time with validation / without", validated / bare, "times", below=1.3)
    report.add("quarantine: time / without, valid rows stored", validated / stored, "times")
    report.add("quarantine: bad rows missed", missed, "rows", below=1)
    report.add("quarantine: valid rows lost", lost, "rows", below=1)
