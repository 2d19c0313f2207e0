"""Transforms of all kinds, and rows to fit them on."""

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa

from raysys.features import (
    Binned,
    Calendar,
    Crossed,
    Cyclic,
    Hashed,
    Numeric,
    OneHot,
    TargetEncoded,
    TextHashed,
)
from raysys.features._transforms import Transform

ALL: list[Transform] = [
    Numeric(["distance", "seats"], impute="median", log=True, scale="standard"),
    Numeric(["delay", "hour"], impute=None, scale="minmax", add_indicator=False),
    Binned(["delay"], n_bins=5),
    Binned(["distance"], n_bins=3, strategy="uniform", encode="ordinal"),
    Cyclic(["hour"], period=24, harmonics=3),
    OneHot(["carrier", "hour"], max_categories=3),
    Hashed(["tail"], buckets=16),
    Hashed(["carrier"], buckets=1000, encode="ordinal"),
    Crossed(["origin", "carrier", "hour"], buckets=32),
    TargetEncoded(["origin", "carrier"], target="late", smooth=3.0),
    TargetEncoded(["tail"], target="delay", time="when"),
    Calendar(["when"], fields=["year", "month", "week", "day_of_year", "weekday", "minute"]),
    TextHashed(["title"], buckets=32, ngrams=2),
]


def rows(count: int = 300) -> pa.Table:
    """Flights, a tenth of each value missing."""
    rng = np.random.default_rng(7)

    def with_nulls(values: Any) -> pa.Array:
        return pa.array(values, mask=rng.random(count) < 0.1)

    def pick(*values: Any) -> Any:
        return np.array(values, object)[rng.integers(0, len(values), count)]

    start = dt.datetime(2013, 1, 1)
    minutes = rng.integers(0, 500_000, count).tolist()
    return pa.table(
        {
            "distance": with_nulls(np.exp(rng.normal(6, 2, count))),
            "seats": with_nulls(rng.integers(10, 400, count)),
            "delay": with_nulls(np.round(rng.normal(0, 30, count), 1)),
            "hour": with_nulls(rng.integers(0, 24, count)),
            "carrier": with_nulls(pick("UA", "DL", "AA", "B6", "9E")),
            "tail": with_nulls([f"N{number}" for number in rng.integers(0, 90, count)]),
            "origin": with_nulls(pick("JFK", "LGA", "EWR")),
            "when": with_nulls([start + dt.timedelta(minutes=minute) for minute in minutes]),
            "title": with_nulls(pick("A late flight", "été à NEW York", "", "new, new, NEW york")),
            "late": with_nulls(rng.random(count) < 0.3),
        }
    )
