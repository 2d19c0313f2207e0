"""Which code makes a run: the commit, and the packages that its answers depend on."""

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
    """The commit of the code: what the submitter says (RAYSYS_GIT_COMMIT), else git's answer."""
    if said := os.environ.get("RAYSYS_GIT_COMMIT"):
        return said
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}
