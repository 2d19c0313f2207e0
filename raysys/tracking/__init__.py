"""The record of runs in MLflow: settings, code and data, curves, results, samples of rows."""

from raysys.tracking._code import git_commit, package_versions
from raysys.tracking._database import TRACKING_VARIABLE, connect, shown_uri, tracking_uri
from raysys.tracking._open import open_run
from raysys.tracking._records import Record, Runs
from raysys.tracking._report import comparison, comparison_plot, details, listing
from raysys.tracking._tracked import TrackedRun

__all__ = [
    "TRACKING_VARIABLE",
    "Record",
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
    "shown_uri",
    "tracking_uri",
]
