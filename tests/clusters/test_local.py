"""Autoscaling of clusters/local.yaml: from zero, to the machines that tasks request."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.clusters import AutoscalingCluster
from raysys.cluster import ON_DEMAND_ONLY

FILE = Path(__file__).parents[2] / "clusters/local.yaml"
_STORE_BYTES = 100_000_000
_DRIVER = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="error")
print("head", ray.cluster_resources().get("CPU", 0))
@ray.remote(num_cpus=1)
def where():
    return ray.get_runtime_context().get_node_labels()["ray.io/market-type"]
results = [where.remote(), where.options(label_selector={on_demand!r}).remote(),
         where.options(num_gpus=1).remote()]
for result in results:
    print(ray.get(result))
"""


class _Local(AutoscalingCluster):
    """clusters/local.yaml with a free port and small object stores."""

    def config(self) -> dict[str, Any]:
        config = yaml.safe_load(FILE.read_text())
        config["provider"]["gcs_address"] = self.address
        for kind in config["available_node_types"].values():
            if "object_store_memory" in kind["resources"]:
                kind["resources"]["object_store_memory"] = _STORE_BYTES
        return config


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    (tmp_path / "token").write_text("a-token-of-this-test-0123456789abcdef0123456789abcdef")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    with _Local({}, object_store_bytes=_STORE_BYTES, environment=token) as cluster:
        yield cluster.address, {**os.environ, **token}


def test_tasks_run_on_the_machines_that_they_request(
    cluster: tuple[str, dict[str, str]],
) -> None:
    address, environment = cluster
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER.format(on_demand=ON_DEMAND_ONLY), address],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    # On a slow machine Ray warns there that nothing has room yet.
    lines = [line for line in done.stdout.splitlines() if "(raylet)" not in line]
    assert lines == ["head 0", "spot", "on-demand", "spot"], done.stderr
