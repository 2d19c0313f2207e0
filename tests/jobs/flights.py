"""A sample of the flights of 2013, in the form of the job's ETL."""

from __future__ import annotations

import functools
import zipfile

import polars as pl
import pyarrow as pa

from jobs.flight_etl import FLIGHTS, NULLS, add_schedule, known_airports, package_folder

Tables = dict[str, pa.Table]


@functools.cache
def tables(first: str, last: str) -> Tables:
    """The tables of `flight_etl.etl`, with the flights and the weather of some days (UTC)."""
    folder = package_folder()
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        raw = archive.read("flights.csv")
    nulls, hour = list(NULLS), pl.col("time_hour").str.to_datetime(time_zone="UTC")
    airports = known_airports(pl.read_csv(folder / "airports.csv", null_values=nulls).to_arrow())
    within = (pl.col("time_hour") >= pl.lit(first)) & (pl.col("time_hour") < pl.lit(last))
    flights = pl.read_csv(raw, null_values=nulls).filter(within).with_columns(time_hour=hour)
    flights = flights.select(list(FLIGHTS.columns))
    joined = flights.join(pl.from_arrow(airports), left_on="dest", right_on="airport", how="left")
    weather = pl.read_csv(
        folder / "weather.csv", null_values=nulls, infer_schema_length=None
    ).filter(within)
    planes = pl.read_csv(folder / "planes.csv", null_values=nulls).select("tailnum", "seats")
    routes = flights.group_by("origin", "dest").agg(distance=pl.col("distance").max())
    return {
        "flights": add_schedule(joined.to_arrow()),
        "weather": weather.with_columns(time_hour=hour).to_arrow(),
        "airports": airports,
        "planes": planes.to_arrow(),
        "routes": routes.to_arrow(),
    }
