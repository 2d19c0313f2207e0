"""Clusters that grow and shrink with what runs on them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.clusters import AutoscalingCluster, NodeType

IDLE_S = 15.0
BACK_S = IDLE_S + 30  # the bar: back to the least nodes by then
_LIMIT_S = 600.0


@contextmanager
def growing(**types: NodeType) -> Iterator[AutoscalingCluster]:
    """A cluster that this process is connected to, with a storage root of its own."""
    import ray

    from raysys import cluster

    before = os.environ.get("RAYSYS_STORAGE")
    with tempfile.TemporaryDirectory(prefix="raysys-autoscaling-") as folder:
        os.environ["RAYSYS_STORAGE"] = folder
        with AutoscalingCluster(types, idle_timeout_s=IDLE_S) as grown:
            cluster.connect(grown.address)
            try:
                yield grown
            finally:
                ray.shutdown()
                os.environ.pop("RAYSYS_STORAGE")
                if before is not None:
                    os.environ["RAYSYS_STORAGE"] = before


def drive(grown: AutoscalingCluster, command: Sequence[str]) -> tuple[float, int]:
    """Run a driver in a process of its own, as a submitted job is; (seconds, most nodes).

    Raises:
        RuntimeError: It failed; what it said is in the message.
    """
    environment = {**os.environ, "RAY_ADDRESS": grown.address}
    started, most = time.monotonic(), 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=said, stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        try:
            while process.poll() is None:
                most = max(most, grown.nodes().total())
                if time.monotonic() - started > _LIMIT_S:
                    raise RuntimeError(f"{command} did not end within {_LIMIT_S:g} s")
                time.sleep(0.3)
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        text = said.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{command} ended with status {process.returncode}: {text[-3000:]}")
    return time.monotonic() - started, most
