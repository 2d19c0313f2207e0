"""A process's side of Ray: connecting, labels and priority."""

import contextlib
import os
from typing import Any

from raysys import audit
from raysys.ray_internals import process
from raysys.storage import Storage
from raysys.telemetry import set_up, worker_hook

# For actors that should not be preempted, such as replicas and indexes. Ray's label has the values
# `spot` and `on-demand`; nodes without it, as on a laptop, match too. Tasks without a selector run
# on spot machines first, by the priority of their node types (clusters/README.md).
ON_DEMAND_ONLY: dict[str, str] = {"ray.io/market-type": "!spot"}

# Two training workers, one serving replica and the headroom fit on a laptop with two cores.
_MIN_LOGICAL_CPUS = 5


def logical_cpus() -> int:
    """Logical CPUs of a local cluster: the machine's cores, but enough for a complete job.

    Logical CPUs are the scheduler's unit; the operating system shares the cores.
    """
    return max(os.cpu_count() or 1, _MIN_LOGICAL_CPUS)


def connect(address: str | None = None, *, measure_traffic: bool = False) -> None:
    """Connect this process to Ray; a no-op if it is connected.

    Args:
        address: Address of a cluster. None: RAY_ADDRESS (set inside a submitted job), else a new
            local cluster that ends with this process.
        measure_traffic: Count the bytes that all processes of this job read from the object
            store; patches Ray's deserialiser, see `raysys.telemetry.object_store`.
    """
    import ray

    if not ray.is_initialized():
        audit.record_start(Storage())
        hook = worker_hook(measure_traffic=measure_traffic)
        options: dict[str, Any] = {"address": address or os.environ.get("RAY_ADDRESS")}
        if not options["address"]:
            options = {"address": "local", "num_cpus": logical_cpus()}
        process.silence_ray()
        ray.init(
            **options, log_to_driver=False, logging_level="warning",
            runtime_env={"worker_process_setup_hook": hook},
        )  # fmt: skip
    set_up(measure_traffic=measure_traffic)


def raise_priority() -> None:
    """Give this process priority over bulk work on its node, if the system permits it.

    Ray starts workers at niceness 15, below all other processes of the machine.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
