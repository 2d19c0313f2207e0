"""This process and the cluster's jobs, as Ray knows them."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys.imports import lazy_import

if TYPE_CHECKING:
    from collections.abc import Callable

worker = lazy_import("ray._private.worker")
state = lazy_import("ray._private.state")


def is_worker() -> bool:
    """Whether this process runs tasks or an actor; a driver does not."""
    return worker.global_worker.mode == worker.WORKER_MODE


def job_metadata() -> dict[str, str]:
    """Metadata of the submitted job that this process belongs to."""
    config: Any = worker.global_worker.core_worker.get_job_config()
    return {str(key): str(value) for key, value in config.metadata.items()}


def session_folder() -> Path:
    """Ray's session folder on this node."""
    return Path(worker._global_node.get_session_dir_path())


def reread_settings() -> None:
    """Let Ray read its environment variables again; it does so once, when it is imported."""
    lazy_import("ray._raylet").Config.initialize("")


def free_agent_port() -> None:
    """Let the agent of a cluster that this process starts choose its port.

    `ray.init` asks for the port 52365. While another cluster of the machine has it, the agent
    serves neither logs nor submitted jobs, and says so in its own log only.
    """
    params = lazy_import("ray._private.parameter").RayParams
    if not isinstance(vars(params)["__init__"], functools.partialmethod):
        params.__init__ = functools.partialmethod(params.__init__, dashboard_agent_listen_port=0)


def live_jobs() -> set[str]:
    """Ids of the jobs whose driver lives; submission ids are others."""
    return {str(job["JobID"]) for job in state.state.job_table() if not job["IsDead"]}


def leave_placement_group() -> None:
    """Let tasks and actors that this process starts be placed on the whole cluster.

    Ray Tune places a trial into a placement group of its own size, and what the trial starts would
    have to find room in there. Ray has no public way out, so this process forgets its group.
    """
    nil = lazy_import("ray").PlacementGroupID.nil()
    worker.Worker.placement_group_id = property(lambda _: nil)


def silence_ray() -> None:
    """Print no messages of Ray's processes in this one: raysys says what concerns its reader.

    Ray's own switch is `log_to_driver`; its messages about lost workers ignore it.
    """
    worker._worker_logs_enabled = False


def is_ray_exit(error: BaseException) -> bool:
    """Whether Ray ends this worker by an exception, after SIGTERM for example."""
    return hasattr(error, "ray_terminate_msg")


def before_exit(tell: Callable[[int], object]) -> None:
    """Call a function with the status before this process ends itself by `os._exit`."""
    end = os._exit

    def exit_(status: int) -> None:
        with contextlib.suppress(OSError):
            tell(status)
        end(status)

    os._exit = exit_  # type: ignore[assignment]
