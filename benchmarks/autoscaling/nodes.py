"""Nodes that a task and a training run ask for, and give back.

PyTorch needs a real GPU where Ray promises one, so the training asks for CPUs here, and a task
that only looks at its GPU's number asks for GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.autoscaling import BACK_S, drive, growing
from benchmarks.clusters import AutoscalingCluster, NodeType

if TYPE_CHECKING:
    from benchmarks._figures import Report


def measure(report: Report, quick: bool) -> None:
    """A GPU task, then training, each on a cluster without workers."""
    driver = ("-m", "benchmarks.autoscaling._driver")
    with growing(gpu=NodeType(2, gpus=1, most=2), cpu=NodeType(2, most=3)) as grown:
        seconds, most = drive(grown, [*driver, "gpu"])
        report.add("GPU task on a cluster without GPUs: driver, whole", seconds, "s")
        report.add("  nodes at most", most, "nodes", above=0.5)
        report.add("  all nodes gone after", _back(grown), "s", below=BACK_S)
    with growing(cpu=NodeType(2, most=4)) as grown:
        seconds, most = drive(grown, [*driver, "train"])
        report.add("training, 2 workers of 2 CPUs: driver, whole", seconds, "s")
        report.add("  nodes at most", most, "nodes", above=1.5)
        report.add("  all nodes gone after", _back(grown), "s", below=BACK_S)


def _back(grown: AutoscalingCluster) -> float:
    return grown.wait_for(lambda nodes: not nodes, timeout_s=2 * BACK_S)
