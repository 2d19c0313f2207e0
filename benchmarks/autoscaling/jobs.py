"""A job of this repository on a cluster without workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks._figures import Report


def measure(report: Report, quick: bool) -> None:
    """jobs/flight_delays.py, small."""
