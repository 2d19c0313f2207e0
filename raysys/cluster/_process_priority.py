"""What a process of the cluster may ask of its machine."""

import contextlib
import os


def raise_priority() -> None:
    """Let this process answer before bulk work on its node, if the system permits it.

    Ray starts workers at niceness 15, so all that is not Ray's on the machine goes first.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
