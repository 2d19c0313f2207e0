"""What is served: `python -m benchmarks.chaos._application deploy|fill|check ...`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos._load import DIM
from raysys import cluster, serve
from raysys.index import VectorIndex, vector_table
from raysys.storage import Storage

PORT = 8000
ROWS = 2_000
_NAME = "chaos"


def weigh(features: np.ndarray) -> np.ndarray:
    """A little work in the entry."""
    return np.asarray(np.tanh(features @ np.eye(DIM, dtype=np.float32)), np.float32)


def score(weigh: np.ndarray) -> np.ndarray:
    """A little work in a replica of its own."""
    return np.asarray(weigh.sum(axis=1), np.float32)


def deploy(root: str, gateways: int) -> None:
    """A graph with a hop, at `/score`; an index with upserts, at `/chaos`."""
    storage = Storage(root)
    vectors = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    table = vector_table(np.arange(ROWS), vectors, {"value": np.arange(ROWS)})
    index = VectorIndex.build(_NAME, table, storage, shards=2, replicas=2)
    graph = serve.Graph(
        inputs={"features": serve.Array("float32", (DIM,))},
        nodes={"weigh": weigh, "score": score},
        output="score",
        placement={"score": serve.Placement(replicas=2, cpus=0.5)},
    )
    gateway = serve.GatewayOptions("0.0.0.0", PORT, storage=storage)
    options: dict[str, Any] = {"gateway": gateway, "replicas": 2, "cpus_per_replica": 0.5}
    serve.deploy("score", graph, **options)
    serve.deploy(_NAME, serve.index_graphs(index), **options)


def check(acknowledged: str, found: str) -> None:
    """Look up every row that was acknowledged; write how many are not as they should be."""
    ids = np.array(json.loads(Path(acknowledged).read_text()), np.int64)
    lost = 0
    if len(ids):
        table = VectorIndex.connect(_NAME).get(ids)
        there = dict(zip(table["id"].to_pylist(), table["value"].to_pylist(), strict=True))
        lost = sum(there.get(one) != one for one in ids.tolist())
    Path(found).write_text(json.dumps({"rows": len(ids), "lost": lost}))


def fill(seconds: float) -> None:
    """Hold twice as much in the object stores as they have room for."""
    import ray

    def make() -> np.ndarray:
        return np.random.default_rng().integers(0, 255, 20 << 20, np.uint8)

    room = ray.cluster_resources()["object_store_memory"]
    task = ray.remote(num_cpus=0.1, scheduling_strategy="SPREAD")(make)
    held = [task.remote() for _ in range(int(2 * room / (20 << 20)))]
    ray.wait(held, num_returns=len(held), timeout=seconds)
    time.sleep(seconds)


if __name__ == "__main__":
    cluster.connect()
    if sys.argv[1] == "deploy":
        deploy(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1] == "fill":
        fill(float(sys.argv[2]))
    else:
        check(sys.argv[2], sys.argv[3])
