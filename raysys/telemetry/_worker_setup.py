"""Set-up of each worker process at its start."""

from raysys.telemetry import logs
from raysys.telemetry.object_store import count_reads


def set_up(*, measure_traffic: bool = False) -> None:
    """Start this process's logs and, if asked for, the count of what it reads.

    Drivers call it; workers call one of the hooks below. A worker that cannot import raysys then
    fails to start.
    """
    if measure_traffic:
        count_reads()
    logs.start()


def set_up_measuring() -> None:
    """`set_up` of a worker whose traffic is measured."""
    set_up(measure_traffic=True)


def worker_hook(*, measure_traffic: bool) -> str:
    """The ``worker_process_setup_hook`` of a runtime_env."""
    function = set_up_measuring if measure_traffic else set_up
    return f"{__name__}.{function.__name__}"
