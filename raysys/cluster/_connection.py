"""Connecting to Ray and checking demand against the cluster's resources."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from raysys import audit
from raysys.cluster._autoscaler_limits import ceiling
from raysys.errors import ResourceError
from raysys.storage import Storage
from raysys.telemetry import set_up, worker_hook

# Modin, Ray Data and the index need a CPU for tasks while trainers run: a trainer that takes
# every CPU blocks them forever, without an error.
HEADROOM_CPUS = 1.0

# Two training workers, one serving replica and the headroom fit on a laptop with two cores.
_MIN_LOGICAL_CPUS = 5


def logical_cpus() -> int:
    """Logical CPUs of a local cluster: the machine's cores, but enough for a complete job.

    Logical CPUs are the scheduler's unit; the operating system shares the cores.
    """
    return max(os.cpu_count() or 1, _MIN_LOGICAL_CPUS)


@dataclass(frozen=True)
class Resources:
    """Logical CPUs and GPUs."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class _Share:
    """Resources reserved for a unit of work, their owner, and the way to reserve more."""

    reserved: Resources
    owner: str
    remedy: str


_share: ContextVar[_Share | None] = ContextVar("share", default=None)


def connect(address: str | None = None, *, measure_traffic: bool = False) -> None:
    """Connect this process to Ray; a no-op if it is connected.

    Args:
        address: Address of a cluster. None: RAY_ADDRESS (set inside a submitted job), else a new
            local cluster that ends with this process.
        measure_traffic: Count the bytes that all processes of this job read from the object
            store; patches Ray's deserialiser, see `raysys.telemetry.object_store`.
    """
    import ray

    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "warning",
        "runtime_env": {"worker_process_setup_hook": worker_hook(measure_traffic=measure_traffic)},
    }
    if not ray.is_initialized():
        audit.record_start(Storage())
        address = address or os.environ.get("RAY_ADDRESS")
        if address:
            ray.init(address=address, **options)
        else:
            ray.init(address="local", num_cpus=logical_cpus(), **options)
    set_up(measure_traffic=measure_traffic)


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
    import ray

    if limit := _share.get():
        return limit.reserved
    total = ray.cluster_resources()
    return Resources(cpus=total.get("CPU", 0.0), gpus=total.get("GPU", 0.0))


def limits() -> Resources:
    """Maximum resources of the cluster after autoscaling, or of this thread's `share`.

    Equal to `resources` if it cannot grow; a million if it can and its limit is unknown.
    """
    current = resources()
    if _share.get() or not (maximum := ceiling()):
        return current
    return Resources(max(current.cpus, maximum[0]), max(current.gpus, maximum[1]))


def can_grow() -> bool:
    """Whether an autoscaler may add nodes to the connected cluster."""
    return ceiling() is not None


def require(purpose: str, *, cpus: float, gpus: float = 0.0) -> None:
    """Check that a demand fits beside the headroom for tasks, before it is submitted.

    A demand that fits after autoscaling passes: the demand itself triggers the autoscaler.

    Raises:
        ResourceError: The demand can never fit.
    """
    current = resources()
    if limit := _share.get():
        if cpus > current.cpus or gpus > current.gpus:
            more = limit.remedy.format(f"Resources(cpus={cpus:g}, gpus={gpus:g})")
            raise ResourceError(
                f"{purpose} needs {cpus:g} CPUs and {gpus:g} GPUs, and {limit.owner} reserves "
                f"{current.cpus:g} and {current.gpus:g} for it: {more}"
            )
        return
    if _fits(current, cpus, gpus):
        return
    maximum = limits()
    if not _fits(maximum, cpus, gpus):
        grown = (
            f", and may grow to {maximum.cpus:g} and {maximum.gpus:g}" if maximum != current else ""
        )
        raise ResourceError(
            f"{purpose} needs {cpus:g} CPUs beside {HEADROOM_CPUS:g} reserved for tasks, and "
            f"{gpus:g} GPUs; the cluster has {current.cpus:g} CPUs and {current.gpus:g} GPUs"
            f"{grown}. Use fewer workers, or a larger cluster (a local one: `raysys up --cpus N`)"
        )


def _fits(available: Resources, cpus: float, gpus: float) -> bool:
    return cpus + HEADROOM_CPUS <= available.cpus and gpus <= available.gpus
