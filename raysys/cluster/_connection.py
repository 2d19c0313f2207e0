"""A process's side of Ray: connecting, labels and priority."""

import contextlib
import os
from typing import Any

from raysys import audit
from raysys.cluster._dashboard import gcs_of
from raysys.cluster._local_head import local_head, logical_cpus
from raysys.cluster._runtime_env import environment
from raysys.cluster._token_auth import enable_token_auth
from raysys.console import note
from raysys.ray_internals import local_processes, process
from raysys.secrets import cluster_token, holds_secret
from raysys.storage import Storage
from raysys.telemetry import set_up, worker_hook

# For actors that should not be preempted, such as replicas and indexes. Ray's label has the values
# `spot` and `on-demand`; nodes without it, as on a laptop, match too. Tasks without a selector run
# on spot machines first, by the priority of their node types (clusters/README.md).
ON_DEMAND_ONLY: dict[str, str] = {"ray.io/market-type": "!spot"}

# Address of a new cluster, as in Ray.
LOCAL = "local"


def connect(address: str | None = None, *, measure_traffic: bool = False) -> None:
    """Connect this process to Ray; a no-op if it is connected.

    The cluster is that of `address`; else, inside a submitted job, the job's own; else that of
    RAY_ADDRESS; else this user's head on this machine (`raysys up`, `raysys submit`, `make demo`);
    else a new one that ends with this process. Outside of jobs a line on standard error says which.

    Args:
        address: URL of a dashboard or address of a GCS; "local" starts a new cluster.
        measure_traffic: Count the bytes that all processes of this job read from the object
            store; patches Ray's deserialiser, see `raysys.telemetry.object_store`.

    Raises:
        StorageError: The storage root does not answer, or is not writable.
        UnavailableError: The cluster does not answer, or has no node on this machine.
    """
    import ray

    if not ray.is_initialized():
        storage = Storage()
        storage.check()
        audit.record_start(storage)
        _init(address, worker_hook(measure_traffic=measure_traffic))
    set_up(measure_traffic=measure_traffic)


def _init(address: str | None, hook: Any) -> None:
    import ray

    job = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    if job and (own := local_processes.own_gcs_address()):
        os.environ["RAY_ADDRESS"] = own  # Ray names the newest cluster of the machine
    head = local_head()
    address = address or os.environ.get("RAY_ADDRESS") or (head.address if head else LOCAL)
    runtime_env: dict[str, Any] = {"worker_process_setup_hook": hook}
    options: dict[str, Any] = {"num_cpus": logical_cpus()} if address == LOCAL else {}
    if address == LOCAL or cluster_token():
        enable_token_auth()
    if address == LOCAL:
        process.free_agent_port()
    else:
        address = gcs_of(address)
        if head and address == head.address:
            os.environ.update(head.tls)
        if not job:  # a job's are those that it was submitted with
            own_head = head is not None and address == head.address
            shared = environment(own_head=own_head).items()
            runtime_env["env_vars"] = {k: v for k, v in shared if not holds_secret(k, v)}
    process.reread_settings()
    process.silence_ray()
    context = ray.init(
        address=address, **options, log_to_driver=False, logging_level="warning",
        runtime_env=runtime_env,
    )  # fmt: skip
    if not job:
        url = f" (dashboard http://{context.dashboard_url})" if context.dashboard_url else ""
        note(
            f"started a Ray cluster{url} that ends with this process; `raysys up` starts one that "
            "stays"
            if address == LOCAL
            else f"joined the Ray cluster at {address}{url}"
        )


def raise_priority() -> None:
    """Give this process priority over bulk work on its node, if the system permits it.

    Ray starts workers at niceness 15, below all other processes of the machine.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
