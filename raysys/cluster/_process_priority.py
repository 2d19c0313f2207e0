"""Scheduling priority of a worker process."""

import contextlib
import os


def raise_priority() -> None:
    """Give this process priority over bulk work on its node, if the system permits it.

    Ray starts workers at niceness 15, below all other processes of the machine.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
