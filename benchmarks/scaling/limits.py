"""How many tasks a second, blocks of a Table and replicas of an application a cluster bears."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.scaling._nodes import PLUMBING, measured, nodes
from raysys import serve
from raysys.data import Table

if TYPE_CHECKING:
    from benchmarks._figures import Report


def measure(report: Report, quick: bool) -> None:
    """All three, on two nodes."""
    with nodes(2, cpus=8.0):
        tasks(report, 2_000 if quick else 10_000)
        for number in (100, 1_000) if quick else (100, 1_000, 4_000):
            blocks(report, number)
        for number in (2, 8) if quick else (2, 8, 32):
            replicas(report, number)


def tasks(report: Report, number: int) -> None:
    """Empty tasks from one driver."""
    import ray

    task = ray.remote(num_cpus=0.5)(_nothing)
    ray.get([task.remote() for _ in range(200)])
    with measured() as spent:
        ray.get([task.remote() for _ in range(number)])
    report.add("empty tasks of one driver", number / spent.wall_s, "tasks/s")
    for kind in ("driver", "gcs", "raylet", "workers"):
        report.add(f"  {kind}'s processor time of a task", 1e6 * spent.cpu_s[kind] / number, "us")


def blocks(report: Report, number: int) -> None:
    """A Table of many small blocks, filtered and counted."""
    table = Table.from_arrow(pa.table({"x": np.arange(number * 10)})).repartition(number)
    with measured() as spent:
        kept = table.filter(pl.col("x") % 2 == 0)
        assert len(kept) == number * 5
    report.add(f"{number} blocks filtered and counted", spent.wall_s, "s")
    report.add("  of a block", 1000 * spent.wall_s / number, "ms")
    report.add("  plumbing's processor time of a block", 1000 * spent.plumbing_s / number, "ms")
    report.add("  driver's of a block", 1000 * spent.cpu_s["driver"] / number, "ms")


def same(x: np.ndarray) -> np.ndarray:
    """The smallest node."""
    return x


def replicas(report: Report, number: int) -> None:
    """An application of many replicas: until all answer, and what they cost at rest."""
    graph = serve.Graph(inputs={"x": serve.Array("float32")}, nodes={"same": same}, output="same")
    with measured() as spent:
        endpoint = serve.deploy(
            "many", graph, replicas=number, cpus_per_replica=0.1,
            gateway=serve.GatewayOptions(port=18_000),
        )  # fmt: skip
        assert endpoint.predict({"x": 1.0}) == {"same": 1.0}
    report.add(f"{number} replicas answer after", spent.wall_s, "s")
    with measured() as rest:
        time.sleep(5)
    plumbing = {kind: rest.cpu_s[kind] / 5 for kind in PLUMBING}
    for kind in ("gateway", "controller", "gcs"):
        report.add(f"  {kind} at rest", 1000 * plumbing[kind], "ms/s")
    report.add("  a replica at rest", 1000 * rest.cpu_s["workers"] / 5 / number, "ms/s")
    serve.undeploy("many")


def _nothing() -> None:
    return None
