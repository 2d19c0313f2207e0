"""Schedules of flights as columns, and New York's time zone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from jobs.flight_etl import HOME

HOUR, DAY = 60, 1440  # minutes


class Flights(NamedTuple):
    """Schedules as columns `(n,)`.

    Attributes:
        departure: int64, minutes since 1970 in UTC.
        block: float64, scheduled minutes to the arrival.
        carrier: Text, like `tailnum` (empty if unknown), `origin` and `dest`.
        flight: int64.
    """

    departure: np.ndarray
    block: np.ndarray
    carrier: np.ndarray
    flight: np.ndarray
    tailnum: np.ndarray
    origin: np.ndarray
    dest: np.ndarray

    @classmethod
    def of(cls, rows: pa.Table) -> Flights:
        """Schedules of the rows of a table, see `flight_etl.etl`."""
        words = {name: texts(rows[name]) for name in ("carrier", "tailnum", "origin", "dest")}
        return cls(
            departure=minutes(rows["departure"]),
            block=numbers(rows["block"]),
            flight=rows["flight"].to_numpy().astype(np.int64),
            **words,
        )


def ahead(departure: np.ndarray) -> np.ndarray:
    """New York's offset from UTC in minutes, negative, int64 `(n,)`."""
    hours, inverse = np.unique(departure // HOUR, return_inverse=True)
    series = pl.Series(hours * HOUR * 60_000).cast(pl.Datetime("ms", "UTC"))
    local = series.dt.convert_time_zone(HOME).dt.replace_time_zone(None)
    offsets = (local - series.dt.replace_time_zone(None)).dt.total_minutes().to_numpy()
    return offsets[inverse]


def minutes(times: pa.ChunkedArray) -> np.ndarray:
    """Times as minutes since 1970, int64."""
    return times.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy() // 60_000_000


def numbers(values: pa.ChunkedArray) -> np.ndarray:
    """Numbers as float64, NaN where missing."""
    return values.to_numpy().astype(np.float64)


def texts(values: pa.ChunkedArray) -> np.ndarray:
    """Texts as NumPy's strings, empty where missing."""
    encoded = values.fill_null("").combine_chunks().dictionary_encode()
    return np.array(encoded.dictionary.to_pylist(), np.str_)[encoded.indices.to_numpy()]
