"""A featurizer of all kinds, and rows to fit it on."""

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
from raysys.features._transform_base import Transform

ALL: list[Transform] = [
    Numeric(["distance", "seats"], impute="median", log=True, scale="standard"),
    Numeric(["delay", "hour"], impute=None, scale="minmax", indicator=False),
    Binned(["delay"], bins=5),
    Binned(["distance"], bins=3, by="uniform", encode="ordinal"),
    Cyclic(["hour"], period=24, harmonics=3),
    OneHot(["carrier", "hour"], most=3),
    Hashed(["tail"], buckets=16),
    Hashed(["carrier"], buckets=1000, encode="ordinal"),
    Crossed(["origin", "carrier", "hour"], buckets=32),
    TargetEncoded(["origin", "carrier"], target="late", smoothing=3.0),
    TargetEncoded(["tail"], target="delay", time="when"),
    Calendar(["when"], fields=["year", "month", "week", "day_of_year", "weekday", "minute"]),
    TextHashed(["title"], buckets=32, ngrams=2),
]


def rows(count: int = 300) -> pa.Table:
    """Flights, a tenth of each value missing."""
    made = np.random.default_rng(7)

    def some(values: Any) -> pa.Array:
        return pa.array(values, mask=made.random(count) < 0.1)

    def pick(*values: Any) -> Any:
        return np.array(values, object)[made.integers(0, len(values), count)]

    start = dt.datetime(2013, 1, 1)
    minutes = made.integers(0, 500_000, count).tolist()
    return pa.table(
        {
            "distance": some(np.exp(made.normal(6, 2, count))),
            "seats": some(made.integers(10, 400, count)),
            "delay": some(np.round(made.normal(0, 30, count), 1)),
            "hour": some(made.integers(0, 24, count)),
            "carrier": some(pick("UA", "DL", "AA", "B6", "9E")),
            "tail": some([f"N{number}" for number in made.integers(0, 90, count)]),
            "origin": some(pick("JFK", "LGA", "EWR")),
            "when": some([start + dt.timedelta(minutes=minute) for minute in minutes]),
            "title": some(pick("A late flight", "été à NEW York", "", "new, new, NEW york")),
            "late": some(made.random(count) < 0.3),
        }
    )
