"""Features of one request of 20 raw fields, online; the same rows in bulk, to the last bit."""

import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks._figures import Report
from raysys import cluster
from raysys.data import Table
from raysys.features import (
    Binned,
    Calendar,
    Crossed,
    Cyclic,
    Featurizer,
    Hashed,
    Numeric,
    OneHot,
    TargetEncoded,
    TextHashed,
)

_NUMBERS = [f"number_{n}" for n in range(8)]
_FEATURIZER = Featurizer(
    [
        Numeric(_NUMBERS[:4], impute="median", add_indicator=True, scale="standard"),
        Numeric(_NUMBERS[4:], impute="mean", log=True, scale="standard"),
        Binned(["amount"], n_bins=8),
        OneHot(["carrier", "origin", "kind", "colour"], max_categories=20),
        Hashed(["tailnum", "user"], buckets=64),
        Crossed(["origin", "dest"], buckets=256),
        TargetEncoded(["dest"], target="label"),
        Calendar(["moment"], fields=["month", "weekday", "hour"]),
        Cyclic(["minute_of_day"], period=1440, harmonics=2),
        TextHashed(["title"], buckets=64),
    ]
)
_FIELDS = [*_NUMBERS, "amount", "carrier", "origin", "kind", "colour", "tailnum", "user", "dest",
           "moment", "minute_of_day", "title", "flag"]  # fmt: skip


def run(report: Report, quick: bool) -> None:
    """Time one request after the other in this process; compare with the bulk answer."""
    rows, asked = (20_000, 2_000) if quick else (200_000, 10_000)
    cluster.connect()
    table = Table.from_arrow(_rows(rows), rows_per_block=rows // 4)
    featurizer = Featurizer([*_FEATURIZER.transforms, Numeric(["flag"])])
    fitted = featurizer.fit(table)
    requests = table.to_arrow().select(_FIELDS).slice(0, asked).to_pylist()
    assert len(requests[0]) == 20
    for request in requests[:200]:
        fitted.transform_one(request)
    seconds, online = [], []
    for request in requests:
        started = time.perf_counter()
        online.append(fitted.transform_one(request))
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    bulk = fitted.transform(table)
    bulk_s = time.perf_counter() - started
    matrix = np.stack([column.to_numpy() for column in bulk.to_arrow().slice(0, asked).columns], 1)
    different = int((np.stack(online).view(np.uint32) != matrix.view(np.uint32)).any(axis=1).sum())
    p50, p99 = (float(np.percentile(seconds, share)) * 1e6 for share in (50, 99))
    size = f"20 fields to {len(fitted.feature_names)} features"
    report.add(f"featurizer, {size}: one request, p50", p50, "us", below=200)
    report.add("featurizer: one request, p99", p99, "us")
    report.add("featurizer: mean of all requests", statistics.mean(seconds) * 1e6, "us")
    report.add("featurizer: answers that differ from the bulk's", different, "rows", below=1)
    report.add("featurizer: in bulk, in tasks", rows / bulk_s, "rows/s")


def _rows(count: int) -> pa.Table:
    """Seeded rows with missing values and categories that many or few share."""
    rng = np.random.default_rng(0)
    missing = rng.random((len(_FIELDS), count)) < 0.05
    start = datetime(2013, 1, 1, tzinfo=UTC)
    minutes = rng.integers(0, 365 * 1440, count)
    words = ["late", "early", "storm", "clear", "delay", "gate", "crew", "fuel"]
    columns: dict[str, Any] = {name: rng.lognormal(size=count) for name in _NUMBERS}
    columns |= {
        "amount": rng.gamma(2.0, 50.0, count),
        "carrier": rng.choice(list("ABCDEFGHIJ"), count),
        "origin": rng.choice(["EWR", "JFK", "LGA"], count),
        "kind": rng.choice(["jet", "prop", "rotor"], count),
        "colour": rng.choice(["red", "green", "blue", "white"], count),
        "tailnum": [f"N{n}" for n in rng.integers(0, 4_000, count)],
        "user": [f"u{n}" for n in rng.integers(0, 50_000, count)],
        "dest": [f"D{n}" for n in rng.integers(0, 105, count)],
        "moment": [start + timedelta(minutes=int(m)) for m in minutes],
        "minute_of_day": (minutes % 1440).astype(float),
        "title": [" ".join(w) for w in rng.choice(words, (count, 4))],
        "flag": rng.integers(0, 2, count).astype(float),
    }
    arrays = [
        pa.array(columns[name], mask=mask) for name, mask in zip(_FIELDS, missing, strict=True)
    ]
    late = (columns["number_0"] > 1).astype(float)
    return pa.table([*arrays, pa.array(late)], names=[*_FIELDS, "label"])
