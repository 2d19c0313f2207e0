"""Runs in MLflow: parameters, code and data versions, curves, results, row samples."""

from raysys.tracking._open_run import git_commit, open_run, package_versions
from raysys.tracking._run_records import RunRecord, Runs, run_status
from raysys.tracking._run_report import comparison, comparison_plot, details, listing
from raysys.tracking._tracked_run import TrackedRun
from raysys.tracking._tracking_server import TRACKING_VARIABLE, connect, shown_uri, tracking_uri

__all__ = [
    "TRACKING_VARIABLE",
    "RunRecord",
    "Runs",
    "TrackedRun",
    "comparison",
    "comparison_plot",
    "connect",
    "details",
    "git_commit",
    "listing",
    "open_run",
    "package_versions",
    "run_status",
    "shown_uri",
    "tracking_uri",
]
