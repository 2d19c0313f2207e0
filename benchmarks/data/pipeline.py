"""Read, join, aggregate, join back, write: ten times the flights of 2013."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks._figures import Report
from benchmarks.data.flights10 import package_folder, write_csv
from raysys import cluster
from raysys.data import read
from raysys.storage import Storage


def our_pipeline(flights: str, storage: Storage, path: str, sizes: list[int] | None = None) -> int:
    """Number of rows of the pipeline over Tables; `sizes` gets the joined Table's bytes."""
    folder, nulls = package_folder(), ("", "NA")
    weather = read(folder / "weather.csv", null_values=nulls).select(
        ["origin", "time_hour", "temp", "wind_speed", "precip", "visib"]
    )
    planes = read(folder / "planes.csv", null_values=nulls)
    planes = planes.select(["tailnum", "year", "seats", "manufacturer"]).rename({"year": "built"})
    table = read(flights, null_values=nulls).filter(pl.col("arr_delay").is_not_null())
    table = table.join(weather, ["origin", "time_hour"]).join(planes, "tailnum").materialize()
    if sizes is not None:
        sizes.append(table.nbytes())
    routes = table.aggregate(
        ["carrier", "dest"],
        mean_delay=("arr_delay", "mean"), flights="rows", far=("distance", "max"),
    )  # fmt: skip
    table = table.join(routes, ["carrier", "dest"]).with_columns(
        late=pl.col("arr_delay") > 15,
        age=2013 - pl.col("built"),
        speed=pl.col("distance") / pl.col("air_time"),
    )
    return table.write_parquet(storage, path)


def run(report: Report, quick: bool) -> None:
    """Time the pipeline and its peers in turns, and compare all rows."""
    times, repeats = (3, 3) if quick else (10, 3)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        flights = folder / "flights.csv"
        write_csv(flights, times)
        seconds: dict[str, list[float]] = {"raysys": [], "polars": [], "pandas": []}
        cluster.connect()
        our_pipeline(str(flights), Storage(folder), "raysys")  # workers start
        for _ in range(repeats):
            for name, measured in seconds.items():
                if name == "raysys":
                    started = time.perf_counter()
                    our_pipeline(str(flights), Storage(folder), "raysys")
                    measured.append(time.perf_counter() - started)
                else:
                    measured.append(_peer(name, flights, folder)[-1])
        seconds["Modin"] = [_peer("Modin", flights, folder)[-1]]
        median = {name: statistics.median(values) for name, values in seconds.items()}
        for name, value in median.items():
            report.add(f"pipeline, {times} x 336,776 flights: {name}", value, "s")
        report.add(
            "pipeline: ours against pandas", median["raysys"] / median["pandas"], "times", below=0.5
        )
        report.add(
            "pipeline: ours against polars", median["raysys"] / median["polars"], "times", below=2.0
        )
        for peer in ("polars", "pandas"):
            different = _rows_that_differ(folder / "raysys", folder / peer)
            report.add(f"pipeline: rows that differ from {peer}'s", different, "rows", below=1)


def _peer(name: str, flights: Path, folder: Path) -> list[float]:
    """Seconds of two runs in a separate process; the second one is warm, as ours are."""
    command = [sys.executable, "-m", "benchmarks.data.peers", name, str(flights),
               str(folder / name), "2"]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def _rows_that_differ(ours: Path, theirs: Path) -> int:
    """Number of rows with different values, in order; floats are compared to 12 digits."""

    def load(folder: Path, columns: Any = None) -> Any:
        frame = pl.read_parquet(sorted(folder.glob("*.parquet")))
        return frame.select(columns or pl.all())

    mine = load(ours)
    peer = load(theirs, mine.columns)
    if len(mine) != len(peer):
        return abs(len(mine) - len(peer))
    same = pl.repeat(True, len(mine), eager=True)
    for name in mine.columns:
        a, b = mine[name], peer[name]
        if a.dtype.is_temporal():
            a, b = a.dt.epoch("ms"), b.dt.epoch("ms")
        elif a.dtype.is_numeric():
            a, b = a.cast(pl.Float64), b.cast(pl.Float64).fill_nan(None)
            near = ((a - b).abs() <= 1e-12 * a.abs()) | (a == b)
            same &= near.fill_null(False) | (a.is_null() & b.is_null())
            continue
        same &= a.eq_missing(b)
    return int((~same).sum())
