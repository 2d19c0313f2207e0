"""The record of runs in MLflow: settings, code and data, curves, results, samples of rows."""

from raysys.tracking._code import git_commit, package_versions
from raysys.tracking._database import TRACKING_VARIABLE, connect, tracking_uri
from raysys.tracking._open import open_run
from raysys.tracking._tracked import TrackedRun

__all__ = [
    "TRACKING_VARIABLE",
    "TrackedRun",
    "connect",
    "git_commit",
    "open_run",
    "package_versions",
    "tracking_uri",
]
