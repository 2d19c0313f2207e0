"""Connecting to Ray and checking demand against what the cluster has."""

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

# Modin, Ray Data and the index need a CPU to run a task on while trainers hold theirs: a
# trainer that takes every CPU starves them for ever, without an error.
HEADROOM_CPUS = 1.0


# Two training workers, one serving replica and the head-room fit on a laptop with two cores.
_MIN_LOGICAL_CPUS = 5


def logical_cpus() -> int:
    """What a cluster on this machine offers: its cores, and enough for a whole job.

    Logical CPUs are the scheduler's unit; the operating system shares the cores.
    """
    return max(os.cpu_count() or 1, _MIN_LOGICAL_CPUS)


@dataclass(frozen=True)
class Resources:
    """What the nodes of a cluster offer, in logical units."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class _Share:
    """What is kept for some work, and how its author asks for more."""

    kept: Resources
    by: str
    remedy: str


_share: ContextVar[_Share | None] = ContextVar("share", default=None)


def connect(address: str | None = None, *, measure_traffic: bool = False) -> None:
    """Connect this process to Ray; a no-op when it is connected.

    Args:
        address: A cluster's address. None takes RAY_ADDRESS (set inside a submitted job),
            else starts one that ends with this process.
        measure_traffic: Count the bytes that every process of this job reads from the object
            store; it patches Ray's deserialiser, see `raysys.telemetry.object_store`.
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
    kept: Resources, by: str = "the search", remedy: str = "search(..., nested={})"
) -> Iterator[None]:
    """In this thread, let `resources` and `require` know only what is kept for this work.

    Trials of a search, and steps of a job, run side by side: if each counted on the whole
    cluster, they would wait for each other's workers for ever.

    Args:
        kept: What there is for it.
        by: Who keeps it, for messages.
        remedy: How more is asked for; `{}` stands for the resources.
    """
    token = _share.set(_Share(kept, by, remedy))
    try:
        yield
    finally:
        _share.reset(token)


def resources() -> Resources:
    """The resources of all living nodes of the connected cluster, or of this thread's `share`."""
    import ray

    if limit := _share.get():
        return limit.kept

    total = ray.cluster_resources()
    return Resources(cpus=total.get("CPU", 0.0), gpus=total.get("GPU", 0.0))


def limits() -> Resources:
    """The resources that the cluster may have once it has grown, or of this thread's `share`.

    Those of its living nodes, if it cannot grow; a million, if it can and nothing says how far.
    """
    have = resources()
    if _share.get() or not (most := ceiling()):
        return have
    return Resources(max(have.cpus, most[0]), max(have.gpus, most[1]))


def can_grow() -> bool:
    """Whether an autoscaler may add nodes to the connected cluster."""
    return ceiling() is not None


def require(purpose: str, *, cpus: float, gpus: float = 0.0) -> None:
    """Check that a demand fits beside the head-room that tasks need, before it is made.

    What fits once the cluster has grown is let through: the demand itself makes it grow.

    Raises:
        ResourceError: It cannot fit, however long it waits.
    """
    have = resources()
    if limit := _share.get():
        if cpus > have.cpus or gpus > have.gpus:
            more = limit.remedy.format(f"Resources(cpus={cpus:g}, gpus={gpus:g})")
            raise ResourceError(
                f"{purpose} needs {cpus:g} CPUs and {gpus:g} GPUs, and {limit.by} keeps "
                f"{have.cpus:g} and {have.gpus:g} for what it starts: {more}"
            )
        return
    if _fits(have, cpus, gpus):
        return
    could = limits()
    if not _fits(could, cpus, gpus):
        grown = f", and may grow to {could.cpus:g} and {could.gpus:g}" if could != have else ""
        raise ResourceError(
            f"{purpose} needs {cpus:g} CPUs beside {HEADROOM_CPUS:g} kept free for tasks, and "
            f"{gpus:g} GPUs; the cluster has {have.cpus:g} CPUs and {have.gpus:g} GPUs{grown}. Use "
            "fewer workers, or a larger cluster (a local one: `raysys up --cpus N`)"
        )


def _fits(room: Resources, cpus: float, gpus: float) -> bool:
    return cpus + HEADROOM_CPUS <= room.cpus and gpus <= room.gpus
