"""A job of this repository on a cluster without workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.autoscaling import BACK_S, drive, growing
from benchmarks.clusters import NodeType

if TYPE_CHECKING:
    from benchmarks._figures import Report

_FLAGS = ("--no-compare", "--no-serve", "--boost-trials", "1")
_QUICK = ("--rounds", "30", "--epochs", "1")


def measure(report: Report, quick: bool) -> None:
    """The flights' job, as it stands in `jobs/`: ETL, boosting, its search, a network, a blend."""
    with growing(cpu=NodeType(4, most=3)) as grown:
        command = ["-m", "jobs.flight_delays", *_FLAGS, *(_QUICK if quick else ())]
        seconds, most = drive(grown, command)
        report.add("flights' job on a cluster without nodes: driver, whole", seconds, "s")
        report.add("  nodes at most", most, "nodes", above=0.5)
        back = grown.wait_for(lambda nodes: not nodes, timeout_s=2 * BACK_S)
        report.add("  all nodes gone after", back, "s", below=BACK_S)
