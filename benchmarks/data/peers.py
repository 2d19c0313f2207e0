"""The same pipeline in pandas, Modin and polars, as their users would write it.

Each runs in a separate process: `python -m benchmarks.data.peers NAME FLIGHTS OUT REPEATS`
prints the seconds of each repeat as JSON.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.data.flights10 import package_folder

_NULLS = ["", "NA"]


def pandas_pipeline(flights: str, out: str, library: Any = None) -> None:
    """The pipeline in pandas, or through the Modin API."""
    import pandas

    pd, folder = library or pandas, package_folder()
    read = {"na_values": _NULLS, "keep_default_na": False, "parse_dates": ["time_hour"]}
    frame = pd.read_csv(flights, **read)
    weather = pd.read_csv(folder / "weather.csv", **read)
    weather = weather[["origin", "time_hour", "temp", "wind_speed", "precip", "visib"]]
    planes = pd.read_csv(folder / "planes.csv", na_values=_NULLS, keep_default_na=False)
    planes = planes[["tailnum", "year", "seats", "manufacturer"]].rename(columns={"year": "built"})
    frame = frame[frame["arr_delay"].notna()]
    frame = frame.merge(weather, on=["origin", "time_hour"], how="left")
    frame = frame.merge(planes, on="tailnum", how="left")
    routes = (
        frame.groupby(["carrier", "dest"], as_index=False)
        .agg(
            mean_delay=("arr_delay", "mean"), flights=("arr_delay", "size"), far=("distance", "max")
        )
    )  # fmt: skip
    frame = frame.merge(routes, on=["carrier", "dest"], how="left")
    frame["late"] = frame["arr_delay"] > 15
    frame["age"] = 2013 - frame["built"]
    frame["speed"] = frame["distance"] / frame["air_time"]
    Path(out).mkdir(exist_ok=True)
    frame.to_parquet(f"{out}/part-0.parquet" if library is None else out)


def modin_pipeline(flights: str, out: str) -> None:
    """The pipeline in Modin on Ray."""
    import modin.pandas as pd

    pandas_pipeline(flights, out, pd)


def polars_pipeline(flights: str, out: str) -> None:
    """The pipeline in lazy polars; `collect` is faster here than the streaming sink."""
    import polars as pl

    folder = package_folder()
    read: dict[str, Any] = {"null_values": _NULLS, "try_parse_dates": True}
    small = {**read, "infer_schema_length": None}
    weather = pl.scan_csv(folder / "weather.csv", **small).select(
        "origin", "time_hour", "temp", "wind_speed", "precip", "visib"
    )
    planes = pl.scan_csv(folder / "planes.csv", **small).select(
        "tailnum", pl.col("year").alias("built"), "seats", "manufacturer"
    )
    frame = pl.scan_csv(flights, **read).filter(pl.col("arr_delay").is_not_null())
    frame = frame.join(weather, on=["origin", "time_hour"], how="left", maintain_order="left")
    frame = frame.join(planes, on="tailnum", how="left", maintain_order="left")
    routes = frame.group_by("carrier", "dest").agg(
        mean_delay=pl.col("arr_delay").mean(), flights=pl.len(), far=pl.col("distance").max()
    )
    frame = frame.join(routes, on=["carrier", "dest"], how="left", maintain_order="left")
    frame = frame.with_columns(
        late=pl.col("arr_delay") > 15,
        age=2013 - pl.col("built"),
        speed=pl.col("distance") / pl.col("air_time"),
    )
    Path(out).mkdir(exist_ok=True)
    frame.collect().write_parquet(f"{out}/part-0.parquet", compression="snappy")


def _main() -> None:
    name, flights, out, repeats = sys.argv[1:]
    pipeline = {"pandas": pandas_pipeline, "Modin": modin_pipeline, "polars": polars_pipeline}[name]
    if name == "Modin":
        import ray

        ray.init(num_cpus=2, log_to_driver=False, logging_level="error")
    seconds = []
    for _ in range(int(repeats)):
        started = time.perf_counter()
        pipeline(flights, out)
        seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds))


if __name__ == "__main__":
    _main()
