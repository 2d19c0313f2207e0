"""Upper limits of a cluster that grows, read from the configuration of Ray's autoscaler."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNKNOWN = 1e6  # effectively unbounded, and still a number to compute with
_HEAD = "node:__internal_head__"


def ceiling() -> tuple[float, float] | None:
    """Maximum CPUs and GPUs of the connected cluster; None if it cannot grow.

    A million each if the autoscaler's configuration is not readable, as under KubeRay.
    """
    import ray

    return _ceiling(ray.get_runtime_context().gcs_address)


@functools.cache
def _ceiling(gcs_address: str) -> tuple[float, float] | None:
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    on_head = any(node["NodeID"] == node_id and _HEAD in node["Resources"] for node in ray.nodes())
    if on_head:
        return read_monitor(gcs_address)
    task = ray.remote(read_monitor).options(
        name="cluster limits", num_cpus=0, resources={_HEAD: 0.001}
    )
    return ray.get(task.remote(gcs_address))


def read_monitor(gcs_address: str) -> tuple[float, float] | None:
    """Maximum CPUs and GPUs by the configuration file of the autoscaler on this node, the head."""
    port = gcs_address.rpartition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        options = dict(
            word.split("=", 1) for word in words if word.startswith("--") and "=" in word
        )
        is_monitor = any(word.endswith("/monitor.py") and "autoscaler" in word for word in words)
        if is_monitor and options.get("--gcs-address", "").rpartition(":")[2] == port:
            file = options.get("--autoscaling-config")
            if file is None:
                return None
            return max_resources(yaml.safe_load(Path(file).expanduser().read_text()))
    if "RAY_USAGE_STATS_KUBERAY_IN_USE" in os.environ:  # its autoscaler has its own container
        return _UNKNOWN, _UNKNOWN
    return None


def max_resources(config: Mapping[str, Any]) -> tuple[float, float] | None:
    """CPUs and GPUs of a cluster's YAML with the maximum number of workers."""
    types, head = config.get("available_node_types") or {}, config.get("head_node_type")
    cap = int(config.get("max_workers", 2))  # Ray's own default
    workers = {name: kind for name, kind in types.items() if name != head}
    if cap == 0 or not workers:
        return None

    def maximum(resource: str) -> float:
        remaining, total = cap, float(_amount(types.get(head, {}), resource))
        for kind in sorted(workers.values(), key=lambda kind: -_amount(kind, resource)):
            nodes = min(remaining, int(kind.get("max_workers", cap)))
            remaining, total = remaining - nodes, total + nodes * _amount(kind, resource)
        return total

    return maximum("CPU"), maximum("GPU")


def _amount(kind: Mapping[str, Any], resource: str) -> float:
    return float((kind.get("resources") or {}).get(resource, 0))
