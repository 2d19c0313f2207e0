"""Bulk prediction: `graph.map` over a Table against the bare models in a loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.serving import ours, yardstick

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks._figures import Report

_BLOCKS = 32
_BATCHES = (512, 2048, 8192, 32768)


def rows_of(seed: int, count: int) -> np.ndarray:
    """Rows `(count, 64)` float32, as like the digits' pictures as the models need."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 17, (count, yardstick.FEATURES)).astype(np.float32)


def compare_bulk(report: Report, folder: Path, rows: int) -> None:
    """Rows a second of both, on all cores."""
    bare = _bare(folder, rows)
    for batch, rate in bare.items():
        report.add(f"bare models in a loop, batches of {batch}", rate, "rows/s")
    best = max(bare.values())
    with ours.ray_cluster():
        graph = ours.yardstick_graph(folder, "float32")
        small, large = _table(_BLOCKS, rows // 50), _table(_BLOCKS, rows)
        cores = os.cpu_count() or 1
        timed = []
        for table in (small, large):
            started = time.perf_counter()
            answers = graph.map(
                table, batch_size=max(bare, key=lambda size: bare[size]), max_actors=cores
            )
            timed.append(time.perf_counter() - started)
            if len(answers) != len(table):
                raise RuntimeError(f"{len(answers)} answers to {len(table)} rows")
        whole = rows / timed[1]
        # The small table costs what actors need to start, and little else.
        steady = (len(large) - len(small)) / (timed[1] - timed[0])
    report.add("map, from the call to the last row", whole, "rows/s")
    report.add("map, while its actors work", steady, "rows/s")
    report.add("map against the bare models in a loop", steady / best, "times", above=0.8)
    report.add("map against the loop, starting its actors included", whole / best, "times")


def _table(blocks: int, rows: int) -> Any:
    import ray

    from raysys.data import Table

    task = ray.remote(_block).options(num_returns=2)
    return Table.from_blocks([task.remote(seed, rows // blocks) for seed in range(blocks)])


def _block(seed: int, count: int) -> Any:
    import pyarrow as pa

    from raysys.data import described

    values = pa.array(rows_of(seed, count).ravel())
    return described(pa.table({"x": pa.FixedSizeListArray.from_arrays(values, yardstick.FEATURES)}))


def _bare(folder: Path, rows: int) -> dict[int, float]:
    """Rows a second by batch size, in a process of its own with a thread for each core."""
    cores = os.cpu_count() or 1
    told = json.dumps({"folder": str(folder), "rows": rows, "threads": cores})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving.bulk", told],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {int(batch): rate for batch, rate in json.loads(done.stdout).items()}


def main() -> None:
    told = json.loads(sys.argv[1])
    model = yardstick.Yardstick(told["folder"], told["threads"])
    x = rows_of(0, told["rows"])
    rates = {}
    for batch in _BATCHES:
        model(x[:batch])
        started = time.perf_counter()
        for start in range(0, len(x), batch):
            model(x[start : start + batch])
        rates[batch] = len(x) / (time.perf_counter() - started)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
