"""Resources of the cluster, now and after autoscaling, and checks of demands against them."""

from __future__ import annotations

import functools
import os
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from raysys.errors import ReservationError, ResourceError
from raysys.imports import lazy_import

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ray = lazy_import("ray")

# Modin, Ray Data and the index need a CPU for tasks while trainers run: a trainer that takes
# every CPU blocks them forever, without an error.
HEADROOM_CPUS = 1.0

_HEAD = "node:__internal_head__"


@dataclass(frozen=True)
class Resources:
    """Logical CPUs and GPUs."""

    cpus: float
    gpus: float

    def covers(self, cpus: float, gpus: float) -> bool:
        """Whether a demand fits."""
        return cpus <= self.cpus and gpus <= self.gpus


# Effectively unbounded, and still numbers to compute with.
_UNKNOWN = Resources(1e6, 1e6)


@dataclass(frozen=True)
class _Share:
    """Resources reserved for a unit of work, their owner, and the way to reserve more."""

    reserved: Resources
    owner: str
    remedy: str


_share: ContextVar[_Share | None] = ContextVar("share", default=None)


@contextmanager
def share(
    reserved: Resources, owner: str = "the search", remedy: str = "search(..., nested={})"
) -> Iterator[None]:
    """Limit `resources` and `require` in this thread to the resources reserved for its work.

    Trials of a search and steps of a job run in parallel: without limits they would wait for
    each other's workers forever.

    Args:
        reserved: Resources of this work.
        owner: Owner of the reservation, for messages.
        remedy: Call that reserves more, for messages; `{}` is replaced by the resources.
    """
    token = _share.set(_Share(reserved, owner, remedy))
    try:
        yield
    finally:
        _share.reset(token)


def resources() -> Resources:
    """Resources of all living nodes of the connected cluster, or of this thread's `share`."""
    if limit := _share.get():
        return limit.reserved
    total = ray.cluster_resources()
    return Resources(cpus=total.get("CPU", 0.0), gpus=total.get("GPU", 0.0))


def limits() -> Resources:
    """Maximum resources of the cluster after autoscaling, or of this thread's `share`.

    Equal to `resources` if it cannot grow; a million if it can and its limit is unknown.
    """
    current = resources()
    if _share.get() or not (maximum := _ceiling(ray.get_runtime_context().gcs_address)):
        return current
    return Resources(max(current.cpus, maximum.cpus), max(current.gpus, maximum.gpus))


def can_grow() -> bool:
    """Whether an autoscaler may add nodes to the connected cluster."""
    return _ceiling(ray.get_runtime_context().gcs_address) is not None


def require(purpose: str, *, cpus: float, gpus: float = 0.0) -> None:
    """Check that a demand fits beside the headroom for tasks, before it is submitted.

    A demand that fits after autoscaling passes: the demand itself triggers the autoscaler.

    Raises:
        ReservationError: The demand is above this thread's `share`.
        ResourceError: The demand can never fit.
    """
    current = resources()
    if limit := _share.get():
        if not current.covers(cpus, gpus):
            more = limit.remedy.format(f"Resources(cpus={cpus:g}, gpus={gpus:g})")
            raise ReservationError(
                f"{purpose} needs {cpus:g} CPUs and {gpus:g} GPUs, and {limit.owner} reserves "
                f"{current.cpus:g} and {current.gpus:g} for it: {more}"
            )
        return
    if current.covers(cpus + HEADROOM_CPUS, gpus):
        return
    maximum = limits()
    if not maximum.covers(cpus + HEADROOM_CPUS, gpus):
        grown = f", and may grow to {maximum.cpus:g} and {maximum.gpus:g}"
        raise ResourceError(
            f"{purpose} needs {cpus:g} CPUs beside {HEADROOM_CPUS:g} reserved for tasks, and "
            f"{gpus:g} GPUs; the cluster has {current.cpus:g} CPUs and {current.gpus:g} GPUs"
            f"{grown if maximum != current else ''}. Use fewer workers, or a larger cluster (a "
            "local one: `raysys up --cpus N`)"
        )


@functools.cache
def _ceiling(gcs_address: str) -> Resources | None:
    """Maximum resources of the connected cluster; None if it cannot grow, else maybe unknown."""
    node_id = ray.get_runtime_context().get_node_id()
    if any(node["NodeID"] == node_id and _HEAD in node["Resources"] for node in ray.nodes()):
        return read_monitor(gcs_address)
    options = {"name": "cluster limits", "num_cpus": 0, "resources": {_HEAD: 0.001}}
    return ray.get(ray.remote(read_monitor).options(**options).remote(gcs_address))


def read_monitor(gcs_address: str) -> Resources | None:
    """Maximum resources by the configuration file of the autoscaler on this node, the head."""
    port = gcs_address.rpartition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if not any(word.endswith("/monitor.py") and "autoscaler" in word for word in words):
            continue
        options = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
        if options.get("--gcs-address", "").rpartition(":")[2] == port:
            file = options.get("--autoscaling-config")
            text = Path(file).expanduser().read_text() if file else ""
            return max_resources(yaml.safe_load(text) or {})
    # KubeRay's autoscaler has its own container.
    return _UNKNOWN if "RAY_USAGE_STATS_KUBERAY_IN_USE" in os.environ else None


def max_resources(config: Mapping[str, Any]) -> Resources | None:
    """Resources of a cluster's YAML with the maximum number of workers; None without any."""
    types, head = config.get("available_node_types") or {}, config.get("head_node_type")
    cap = int(config.get("max_workers", 2))  # Ray's own default
    workers = [kind for name, kind in types.items() if name != head]
    if cap == 0 or not workers:
        return None

    def amount(kind: Mapping[str, Any], resource: str) -> float:
        return float((kind.get("resources") or {}).get(resource, 0))

    def maximum(resource: str) -> float:
        remaining, total = cap, amount(types.get(head, {}), resource)
        for kind in sorted(workers, key=lambda kind: -amount(kind, resource)):
            nodes = min(remaining, int(kind.get("max_workers", cap)))
            remaining, total = remaining - nodes, total + nodes * amount(kind, resource)
        return total

    return Resources(maximum("CPU"), maximum("GPU"))
