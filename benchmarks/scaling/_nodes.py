"""Simulated nodes on this machine, and what each kind of process costs."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

_STORE_BYTES = 100 << 20
_TICKS = os.sysconf("SC_CLK_TCK")
# Of a process's command line, the first that is in it; anything else runs tasks and actors.
_KINDS = {
    "gcs_server": "gcs",
    "raylet/raylet": "raylet",
    "DashboardA": "agents",
    "RuntimeEnv": "agents",
    "agent.py": "agents",
    "dashboard": "dashboard",
    "log_monitor": "agents",
    "monitor.py": "agents",
    "haproxy": "haproxy",
    "ray::Gateway": "gateway",
    "ray::ServeController": "controller",
    "ray::IDLE": "idle",
    "ray::": "workers",
    "default_worker": "workers",
}
PLUMBING = ("gcs", "raylet", "driver", "agents", "dashboard", "gateway", "controller")


@dataclass
class Spent:
    """What a piece of work took.

    Attributes:
        wall_s: From its start to its end.
        cpu_s: Processor time by kind of process.
    """

    wall_s: float = 0.0
    cpu_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def plumbing_s(self) -> float:
        """Processor time of all that is not the work itself."""
        return sum(self.cpu_s[kind] for kind in PLUMBING)


@contextlib.contextmanager
def nodes(number: int, *, cpus: float = 2.0) -> Iterator[Any]:
    """A cluster of so many nodes beside a head without CPUs, and a driver in this process."""
    import ray
    from ray.cluster_utils import Cluster

    from raysys import cluster as ours

    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        # Ray's note of the last cluster must not stand where others look.
        os.environ["RAY_TMPDIR"] = folder
        os.environ["RAYSYS_STORAGE"] = f"{folder}/storage"
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": _STORE_BYTES,
                            "include_dashboard": False, "dashboard_port": _free_port()},
        )  # fmt: skip
        try:
            for _ in range(number):
                cluster.add_node(num_cpus=cpus, object_store_memory=_STORE_BYTES)
            ours.connect(cluster.address)
            yield cluster
        finally:
            with contextlib.suppress(Exception):
                from raysys import serve

                serve.shutdown()
            ray.shutdown()
            cluster.shutdown()
            os.environ.pop("RAY_TMPDIR")


@contextlib.contextmanager
def measured() -> Iterator[Spent]:
    """What the block costs, over all processes of the cluster that this process started."""
    spent, before, started = Spent(), _seconds(), time.perf_counter()
    yield spent
    spent.wall_s = time.perf_counter() - started
    for pid, (kind, seconds) in _seconds().items():
        spent.cpu_s[kind] += seconds - before.get(pid, (kind, 0.0))[1]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def idle(seconds: float) -> Spent:
    """What the cluster costs when nothing runs."""
    with measured() as spent:
        time.sleep(seconds)
    return spent


def _seconds() -> dict[int, tuple[str, float]]:
    found = {os.getpid(): ("driver", _cpu(os.getpid()))}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            words = " ".join(process.cmdline())
            kind = next((kind for word, kind in _KINDS.items() if word in words), "other")
            found[process.pid] = kind, _cpu(process.pid)
    return found


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
