"""A local cluster with Ray's autoscaler and fake GPU nodes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.clusters import AutoscalingCluster, NodeType

_IDLE_S = 8.0
# A separate driver: this process may be connected to the cluster that other tests share.
_DRIVER = """
import time
import ray
from raysys import cluster
from raysys.cluster import Resources, limits, require, resources
from raysys.errors import ResourceError

cluster.connect()
assert resources() == Resources(0, 0)
assert cluster.can_grow() and limits() == Resources(4, 2)
require("training", cpus=3, gpus=2)
try:
    require("training", cpus=4, gpus=2)
except ResourceError as error:
    message = "the cluster has 0 CPUs and 0 GPUs, and may grow to 4 and 2"
    assert message in str(error), error
else:
    raise AssertionError("a demand beyond the limits was accepted")

def living():
    return [node for node in ray.nodes() if node["Alive"] and "GPU" in node["Resources"]]

assert not living()
task = ray.remote(num_gpus=1)(lambda: ray.get_runtime_context().get_accelerator_ids()["GPU"])
assert len(ray.get(task.remote())) == 1
assert len(living()) == 1
print("up", flush=True)
while living():
    time.sleep(0.2)
print("down", flush=True)
"""


@pytest.mark.cluster
def test_a_gpu_task_starts_a_node_that_ends_when_idle(tmp_path: Path) -> None:
    types = {"gpu": NodeType(2, gpus=1, most=2)}
    with AutoscalingCluster(types, idle_timeout_s=_IDLE_S) as grown:
        done = subprocess.run(
            [sys.executable, "-c", _DRIVER],
            env={
                **os.environ,
                "RAY_ADDRESS": grown.address,
                "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
                "RAYSYS_STORAGE": str(tmp_path),
            },
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["up", "down"]
