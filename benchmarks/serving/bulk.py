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

_ROWS_PER_BLOCK = 31_250
_BATCHES = (512, 2048, 8192, 32768)
_TRIED_ROWS = 100_000


def rows_of(seed: int, count: int) -> np.ndarray:
    """Rows `(count, 64)` float32, as like the digits' pictures as the models need."""
    rng = np.random.default_rng(seed)
    return 17 * rng.random((count, yardstick.FEATURES), np.float32)


def compare_bulk(report: Report, folder: Path, sizes: dict[int, float]) -> None:
    """Rows a second of both, on all cores, from the call to the last row.

    `sizes` has the bar of each number of rows. The bare models are loaded before their time starts;
    ours starts its actors in it.
    """
    cores = os.cpu_count() or 1
    batch, bare = _bare(folder, min(sizes))
    report.add(f"bare models in a loop, batches of {batch}", bare, "rows/s")
    with ours.ray_cluster():
        graph = ours.yardstick_graph(folder, "float32")
        for rows, bar in sizes.items():
            table = _table(rows)
            started = time.perf_counter()
            answers = graph.map(table, batch_size=batch, max_actors=cores)
            if len(answers) != rows:
                raise RuntimeError(f"{len(answers)} answers to {rows} rows")
            rate = rows / (time.perf_counter() - started)
            report.add(f"map of {rows:,} rows", rate, "rows/s")
            report.add(f"map of {rows:,} rows against the loop", rate / bare, "times", above=bar)


def _table(rows: int) -> Any:
    import ray

    from raysys.data import Table

    task = ray.remote(_block).options(num_returns=2)
    blocks = range(rows // _ROWS_PER_BLOCK)
    table = Table.from_blocks([task.remote(seed, _ROWS_PER_BLOCK) for seed in blocks])
    if len(table) != rows:  # waits for all blocks
        raise ValueError(f"{rows} rows are not whole blocks of {_ROWS_PER_BLOCK}")
    return table


def _block(seed: int, count: int) -> Any:
    import pyarrow as pa

    from raysys.data import described

    values = pa.array(rows_of(seed, count).ravel())
    return described(pa.table({"x": pa.FixedSizeListArray.from_arrays(values, yardstick.FEATURES)}))


def _bare(folder: Path, rows: int) -> tuple[int, float]:
    """The best batch size and its rows a second, in a process with a thread for each core."""
    cores = os.cpu_count() or 1
    told = json.dumps({"folder": str(folder), "rows": rows, "threads": cores})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving.bulk", told],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    batch, rate = json.loads(done.stdout)
    return int(batch), float(rate)


def main() -> None:
    told = json.loads(sys.argv[1])
    model = yardstick.Yardstick(told["folder"], told["threads"])
    x = rows_of(0, told["rows"])
    tried = {batch: _rate(model, x[:_TRIED_ROWS], batch) for batch in _BATCHES}
    best = max(tried, key=lambda batch: tried[batch])
    print(json.dumps([best, _rate(model, x, best)]))


def _rate(model: yardstick.Yardstick, x: np.ndarray, batch: int) -> float:
    """Rows a second in a loop."""
    model(x[:batch])
    started = time.perf_counter()
    for start in range(0, len(x), batch):
        model(x[start : start + batch])
    return len(x) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
