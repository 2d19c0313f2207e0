"""A cluster of two nodes with a run that emits every metric; for test_monitoring.

Prints where Prometheus finds its targets and when the run is over, and then reads commands, one a
line: `node` ends the second node, `replica` the index's only replica without restart, `stop` all.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from raysys import cluster, serve, train, tune
from raysys.data import Schema, Table, validate
from raysys.gateway import create_key
from raysys.index import VectorIndex, vector_table
from raysys.storage import Storage
from raysys.workflow import Job, Run
from tests.train.tasks import Regression


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Config(BaseModel):
    seed: int = 0


def emit(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def make(run: Run) -> pa.Table:
    rng = np.random.default_rng(0)
    table = pa.table({f"x{i}": rng.normal(size=4000) for i in range(4)})
    table = table.append_column("y", pa.array(rng.normal(size=4000)))
    schema = Schema.from_yaml(
        "name: numbers\ncolumns: {x0: {type: float64, max: 2}, x1: {type: float64}, "
        "x2: {type: float64}, x3: {type: float64}, y: {type: float64}}"
    )
    return validate(Table.from_arrow(table), schema).valid.to_arrow()


def fit(run: Run, rows: pa.Table) -> float:
    settings = train.TrainSettings(epochs=4, batch_size=8, num_workers=1, checkpoint_steps=200)
    result = train.fit("watched", Regression(), {"rows": Table.from_arrow(rows)}, settings,
                       run.storage)  # fmt: skip
    return result.history[-1]["loss"]


def objective(settings: dict[str, Any], tables: dict[str, pa.Table], report: Any) -> None:
    report({"score": settings["x"]})


def fail(run: Run, loss: float) -> None:
    raise ValueError("a step that fails")


def answer(x: np.ndarray) -> np.ndarray:
    if (x < 0).any():
        raise ValueError("a request that fails")
    time.sleep(0.02)
    return 2 * x


def ask(url: str, key: str, value: float) -> None:
    body = json.dumps({"x": value}).encode()
    headers = {"content-type": "application/json", "x-api-key": key}
    request = urllib.request.Request(url, body, headers)
    with contextlib.suppress(OSError):  # errors are part of the load
        urllib.request.urlopen(request, timeout=10).read()


def load(url: str, key: str, stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        ask(url, key, -1.0 if number % 10 == 0 else 1.0)
        time.sleep(0.04)  # six clients still ask for more than the replica's 50 a second


def main(folder: str) -> None:
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # for the workers
    nodes = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 6, "include_dashboard": True, "temp_dir": f"{folder}/ray",
            "dashboard_port": 0,
            "_system_config": {"metrics_report_interval_ms": 1000},
            "object_store_memory": 200 << 20,
        },
    )  # fmt: skip
    second = nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
    os.environ["RAYSYS_STORAGE"] = storage_root = f"{folder}/storage"
    cluster.connect(nodes.address)
    listen = f"127.0.0.1:{free_port()}"
    emit("up", targets=f"{folder}/ray/prom_metrics_service_discovery.json", listen=listen)
    storage, stop = Storage(storage_root), threading.Event()

    vectors = np.random.default_rng(0).normal(size=(500, 16))
    index = VectorIndex.build(
        "things", vector_table(np.arange(500), vectors), storage, shards=1, replicas=1
    )
    graph = serve.Graph(
        inputs={"x": serve.Array("float32")}, nodes={"answer": answer}, output="answer"
    )
    endpoint = serve.deploy(
        "watched", graph, batching=serve.Batching(max_batch_size=1, max_queued_rows=1),
        deadline_s=0.5, gateway=serve.GatewayOptions(port=free_port()), protected=True,
    )  # fmt: skip
    key = create_key(storage, "watched", rate_per_s=10_000)
    for _ in range(6):
        threading.Thread(target=load, args=(endpoint.url, key, stop), daemon=True).start()
    job = Job("watched", Config(), storage)
    rows = job.step(make)
    loss = job.step(fit, rows)
    job.step(fail, loss).options(max_retries=0)
    try:
        job.run()
    except Exception as error:
        emit("failed", error=str(error)[:500])
    tune.search(
        "watched", objective, {}, {"x": tune.Float(0, 1)}, storage, metric="score", n_trials=2,
        resources=tune.TrialResources(cpus=1),
    )  # fmt: skip
    for number in range(20):
        index.query(vectors[:4], 3)
        index.upsert(vector_table([number], vectors[number : number + 1]))
    index.delete([1, 2, 3])
    emit("ran")
    for line in sys.stdin:
        if line.strip() == "node":
            nodes.remove_node(second, allow_graceful=False)
        elif line.strip() == "replica":
            end_replica()
        emit(line.strip())
        if line.strip() == "stop":
            break
    stop.set()
    serve.shutdown()
    import ray

    ray.shutdown()
    nodes.shutdown()


def end_replica() -> None:
    """End the index's only replica without restart."""
    import ray

    ray.kill(ray.get_actor("index:things:0.0", "raysys"), no_restart=True)


if __name__ == "__main__":
    main(sys.argv[1])
