"""What each worker process does at its start."""

from raysys.telemetry import logs
from raysys.telemetry.object_store import count_reads

WORKER_HOOK = "raysys.telemetry._worker_setup.set_up"


def set_up() -> None:
    """Count what the process reads, and write its logs.

    Drivers call it; of workers it is the ``worker_process_setup_hook`` of their runtime_env. A
    worker that cannot import raysys then fails to start.
    """
    count_reads()
    logs.start()
