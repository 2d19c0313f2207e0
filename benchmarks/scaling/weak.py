"""Weak scaling: each node has the same work, so all that grows beside it is plumbing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.scaling._nodes import Spent, idle, measured, nodes
from raysys import serve
from raysys.data import Table
from raysys.index import VectorIndex, vector_table
from raysys.storage import Storage

if TYPE_CHECKING:
    from benchmarks._figures import Report

_ROWS, _BLOCKS, _DIM = 20_000, 4, 16  # of a node
_QUERIES = 200
_IDLE_S = 5.0


def measure(report: Report, quick: bool) -> None:
    """ETL, index and bulk prediction on more and more nodes."""
    per_node: dict[str, list[tuple[int, float]]] = {}
    for number in (1, 2, 4) if quick else (1, 2, 4, 8):
        with nodes(number):
            rest = idle(_IDLE_S)
            report.add(f"{number} nodes: plumbing at rest", rest.plumbing_s / _IDLE_S / number,
                       "cores/node")  # fmt: skip
            for work in (etl, index, bulk):
                work(1)  # processes start, modules are imported
                with measured() as spent:
                    work(number)
                _tell(report, f"{number} nodes: {work.__name__}", number, spent, rest)
                per_node.setdefault(work.__name__, []).append((number, _beyond(spent, rest)))
    for name, points in per_node.items():
        numbers, seconds = zip(*points, strict=True)
        slope, fixed = np.polyfit(numbers, seconds, 1)
        report.add(f"{name}: plumbing of a further node", 1000 * slope, "ms")
        report.add("  of the first beside it", 1000 * fixed, "ms")


def etl(number: int) -> None:
    """Derive, filter, aggregate over all nodes, count."""
    draw = np.random.default_rng(0)
    blocks = [
        pa.table({"key": draw.integers(0, 100, _ROWS // _BLOCKS),
                  "x": draw.normal(size=_ROWS // _BLOCKS)})
        for _ in range(number * _BLOCKS)
    ]  # fmt: skip
    table = Table.from_arrow(pa.concat_tables(blocks)).repartition(number * _BLOCKS)
    table = table.with_columns(y=pl.col("x") * 2).filter(pl.col("y") > 0)
    assert len(table.aggregate(["key"], count="rows")) == 100


def index(number: int) -> None:
    """A shard for each node: build, ask one by one, close."""
    vectors = np.random.default_rng(0).normal(size=(number * _ROWS // 10, _DIM))
    table = vector_table(np.arange(len(vectors)), vectors.astype(np.float32))
    made = VectorIndex.build(f"weak{number}", table, Storage(), shards=number, replicas=1)
    for row in range(_QUERIES):
        made.query(vectors[row : row + 1], 10)
    made.close()


def double(x: np.ndarray) -> np.ndarray:
    """A model, nearly."""
    return np.asarray(np.tanh(x) * 2)


def bulk(number: int) -> None:
    """A graph over a Table."""
    graph = serve.Graph(
        inputs={"x": serve.Array("float64")}, nodes={"double": double}, output="double"
    )
    values = pa.table({"x": np.random.default_rng(0).normal(size=number * _ROWS)})
    table = Table.from_arrow(values).repartition(number * _BLOCKS)
    assert len(graph.map(table)) == number * _ROWS


def _beyond(spent: Spent, rest: Spent) -> float:
    """Plumbing beyond what the cluster costs at rest."""
    return spent.plumbing_s - rest.plumbing_s * spent.wall_s / _IDLE_S


def _tell(report: Report, name: str, number: int, spent: Spent, rest: Spent) -> None:
    cpu = spent.cpu_s
    report.add(name, spent.wall_s, "s")
    report.add("  workers' processor time a node", (cpu["workers"] + cpu["idle"]) / number, "s")
    report.add("  plumbing's a node, beyond rest", 1000 * _beyond(spent, rest) / number, "ms")
    report.add("  of it GCS, all nodes", 1000 * cpu["gcs"], "ms")
    report.add("  of it the driver, all nodes", 1000 * cpu["driver"], "ms")
