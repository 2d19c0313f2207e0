"""Ray's processes on this machine, read from their command lines under /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def arguments(pid: int) -> list[str]:
    """The command line of a process; empty if it has ended."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return line.decode(errors="replace").rstrip("\0").split("\0")


def option(command: list[str], name: str) -> str:
    """The value of `--name=value` in a command line; empty without it."""
    values = (word.removeprefix(f"--{name}=") for word in command if word.startswith(f"--{name}="))
    return next(values, "")


def commands() -> Iterator[tuple[int, list[str]]]:
    """Process ids of this machine in ascending order, each with its command line."""
    for pid in sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        yield pid, arguments(pid)


def gcs_address_of_session(session_name: str) -> str:
    """GCS address of the cluster with a session, by its node on this machine; empty without one."""
    addresses = (
        option(command, "gcs-address")
        for _, command in commands()
        if _is_raylet(command) and option(command, "session-name") == session_name
    )
    return next(addresses, "")


def own_gcs_address() -> str:
    """GCS address of the cluster whose node started this process; empty outside of a cluster.

    Ray names the newest cluster of the machine to a submitted job, whichever runs it. The job is a
    descendant of its own cluster's node.
    """
    pid = os.getpid()
    while pid > 1:
        command = arguments(pid)
        if _is_raylet(command):
            return option(command, "gcs-address")
        pid = _parent(pid)
    return ""


def _is_raylet(command: list[str]) -> bool:
    return bool(command) and Path(command[0]).name == "raylet"


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        # The second field is a name in parentheses that may contain spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[1])
    return 0
