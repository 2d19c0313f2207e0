"""Version of the code of a run: its commit and its packages."""

import functools
import importlib.metadata
import os
import subprocess

_PACKAGES = (
    "deepspeed", "hnswlib", "modin", "optuna", "polars", "pyarrow", "ray", "raysys",
    "scikit-learn", "torch", "xgboost", "xgboost-ray",
)  # fmt: skip


@functools.cache
def git_commit() -> str:
    """Commit of the code: RAYSYS_GIT_COMMIT, else of the checkout; "unknown" without either."""
    if commit := os.environ.get("RAYSYS_GIT_COMMIT"):
        return commit
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that a run's results depend on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}
