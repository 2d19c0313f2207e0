"""An application whose replicas, and then nodes, follow its load."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.autoscaling import BACK_S, growing
from benchmarks.clusters import AutoscalingCluster, NodeType
from benchmarks.serving.load import run_load, start_load

if TYPE_CHECKING:
    import numpy as np

    from benchmarks._figures import Report

_BATCH_S, _ROWS = 0.05, 8  # a replica's 160 rows a second
_CALM, _BUSY = 60, 400
_DOWN_S = 10.0


def _model(x: np.ndarray) -> np.ndarray:
    time.sleep(_BATCH_S)  # a GPU's time: a core of this machine would be the bottleneck
    return 2 * x


@dataclass
class _Watch:
    """Replicas and nodes, and when they first were as many."""

    grown: AutoscalingCluster
    application: str

    def replicas(self) -> int:
        from ray import serve

        found = serve.status().applications.get(self.application)
        entry = found.deployments.get("entry") if found else None
        return entry.replica_states.get("RUNNING", 0) if entry else 0

    def wait(self, is_so: Callable[[int, int], bool], timeout_s: float) -> float:
        started = time.monotonic()
        while not is_so(replicas := self.replicas(), nodes := self.grown.nodes().total()):
            if time.monotonic() - started > timeout_s:
                raise TimeoutError(f"{replicas} replicas, {nodes} nodes: {self.grown.activity()}")
            time.sleep(0.3)
        return time.monotonic() - started


def measure(report: Report, quick: bool) -> None:
    """Calm, busy and calm again, then the application's end."""
    from raysys import serve

    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    graph = serve.Graph(inputs={"x": serve.Array("int64")}, nodes={"model": _model}, output="model")
    bodies = [b'{"x": %d}' % number for number in range(100)]
    with growing(cpu=NodeType(2, most=3)) as grown:
        started = time.monotonic()
        endpoint = serve.deploy(
            "grown", graph, replicas=serve.Autoscaling(1, 4, downscale_delay_s=_DOWN_S),
            batching=serve.Batching(max_batch_size=_ROWS), gateway=serve.GatewayOptions(port=port),
        )  # fmt: skip
        report.add("application on a cluster without nodes: up after", time.monotonic() - started,
                   "s")  # fmt: skip
        watch = _Watch(grown, f"grown-v{endpoint.version}")
        calm = run_load(endpoint.url, bodies, rate=_CALM, seconds=10, clients=64)
        report.add(f"  replicas at {_CALM} requests/s", watch.replicas(), "replicas", below=1.5)
        report.add("  requests that failed", calm.failed, "requests", below=0.5)
        seconds = 40 if quick else 90
        load = start_load(endpoint.url, bodies, rate=_BUSY, seconds=seconds, clients=256,
                          warmup_s=0.0)  # fmt: skip
        up = watch.wait(lambda replicas, _: replicas > 1, seconds)
        report.add(f"  {_BUSY} requests/s: a second replica after", up, "s", below=20)
        up += watch.wait(lambda replicas, nodes: replicas > 2 and nodes > 1, seconds - up)
        report.add("  ... a third, on a second node, after", up, "s", below=40)
        busy = load.result()
        report.add("  replicas at the end", watch.replicas(), "replicas", above=2.5)
        report.add("  requests that failed", busy.failed, "requests", below=0.5)
        late = sum(one.status.get("503", 0) for one in busy.series[-10:])
        report.add("  refused for want of replicas, of all", 100 * busy.status.get("503", 0)
                   / busy.sent, "%")  # fmt: skip
        report.add("  refused in the last 10 s", late, "requests", below=0.5)
        quiet = start_load(endpoint.url, bodies, rate=10, seconds=40, clients=16, warmup_s=0.0)
        down = watch.wait(lambda replicas, _: replicas == 1, 120)
        report.add("  calm again: one replica after", down, "s", below=_DOWN_S + 30)
        nodes = watch.wait(lambda _, nodes: nodes == 1, 2 * BACK_S)
        report.add("  one node after it", nodes, "s", below=BACK_S)
        report.add("  requests that failed", quiet.result().failed, "requests", below=0.5)
        serve.undeploy("grown")
        gone = grown.wait_for(lambda nodes: not nodes, timeout_s=2 * BACK_S)
        report.add("  undeployed: no node after", gone, "s", below=BACK_S)
        serve.shutdown()
