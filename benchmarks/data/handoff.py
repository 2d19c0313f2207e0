"""Hand-off of a Table to training workers and xgboost-ray's actors: time, bytes in the driver."""

import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from benchmarks._figures import Report
from raysys import cluster
from raysys.data import Table, described
from raysys.telemetry import DriverMeter

_WORKERS, _COLUMNS, _BLOCKS = 2, 10, 6


def run(report: Report, quick: bool) -> None:
    """Measure both with 3 million rows of 10 columns."""
    rows = 300_000 if quick else 3_000_000
    cluster.connect()
    make = ray.remote(_block).options(num_returns=2)
    table = Table.from_blocks([make.remote(number, rows // _BLOCKS) for number in range(_BLOCKS)])
    workers = [ray.remote(_Worker).remote() for _ in range(_WORKERS)]
    ray.get([w.ready.remote() for w in workers])
    meter = DriverMeter()
    meter.install()
    try:
        first, complete = zip(*ray.get([w.batches.remote(table) for w in workers]), strict=True)
        matrix = table.to_dmatrix(label="label")
        matrix.assign_shards_to_actors(workers)  # as xgboost-ray does before it trains
        shards = ray.get([w.shard.remote(matrix, n) for n, w in enumerate(workers)])
    finally:
        meter.uninstall()
    size = f"{rows / 1e6:g} million rows x {_COLUMNS}"
    report.add(f"hand-off, {size}: first batch in a worker", max(first), "s", below=1)
    report.add("hand-off: all batches in both workers", max(complete), "s")
    loaded = [seconds for seconds, _ in shards]
    assert sum(count for _, count in shards) == rows
    report.add("hand-off: a RayDMatrix's shard in an actor", max(loaded), "s", below=1)
    report.add("hand-off: bytes of tables through the driver", meter.table_bytes, "bytes", below=1)
    for worker in workers:
        ray.kill(worker)


def _block(number: int, rows: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(number)
    columns = {f"x{n}": rng.normal(size=rows).astype(np.float32) for n in range(_COLUMNS - 1)}
    return described(pa.table({**columns, "label": (columns["x0"] > 0).astype(np.float32)}))


class _Worker:
    """A process like a training worker's."""

    def ready(self) -> None:
        """Load the libraries, as a training worker does."""
        import pandas
        import xgboost_ray

        del pandas, xgboost_ray

    def ip(self) -> str:
        """Address of the node, for xgboost-ray."""
        return ray.util.get_node_ip_address()

    def batches(self, table: Table) -> tuple[float, float]:
        """Seconds to the first batch, as an array, and to the last."""
        started, first = time.perf_counter(), 0.0
        for batch in table.iter_batches(8192):
            np.stack([column.to_numpy() for column in batch.columns], axis=1)
            first = first or time.perf_counter() - started
        return first, time.perf_counter() - started

    def shard(self, matrix: Any, rank: int) -> tuple[float, int]:
        """Seconds until this actor's share is loaded, and its rows."""
        started = time.perf_counter()
        data = matrix.get_data(rank, _WORKERS)
        return time.perf_counter() - started, len(data["data"])
