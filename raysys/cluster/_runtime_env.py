"""The runtime environment of a submitted job: its folder without local files and secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys.cluster._job_folder import check_folder
from raysys.errors import RaysysError
from raysys.secrets import holds_secret
from raysys.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Mapping

# Patterns as in .gitignore, added to the folder's own .gitignore and .rayignore. They have no
# trailing slash: Ray matches a folder's name without one, and would else walk through the folder.
_EXCLUDES = (
    # Histories and environments
    ".git", ".hg", ".svn", ".jj", ".venv", "venv", ".conda", ".tox", ".nox", "node_modules",
    # Caches
    "__pycache__", "*.pyc", ".cache", ".*_cache", ".hypothesis", ".ipynb_checkpoints", ".coverage",
    ".idea", ".vscode", ".DS_Store", "*.egg-info", "/build", "/dist",
    # Artefacts
    ".raysys", "mlruns", "mlartifacts", "mlflow.db*", "wandb", "lightning_logs", "*.partial",
    "core.[0-9]*",
    # Secrets
    ".env*", "*.env", ".netrc", ".pgpass", ".pypirc", ".npmrc", ".aws", ".azure", ".ssh",
    ".kube", ".docker", ".gcloud", ".ray", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx",
    "*.ppk", "*.keytab", "id_rsa*", "id_ecdsa*", "id_ed25519*", "auth_token", "secrets",
    "secrets.json", "secrets.toml", "secrets.y*ml", "credentials", "credentials.json",
    "credentials.csv", "credentials.y*ml", "*service?account*.json",
    "application_default_credentials.json",
)  # fmt: skip


def runtime_env(working_dir: Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The `runtime_env` of a job submitted from a folder.

    Args:
        working_dir: Folder to upload as the job's working directory.
        env: Environment variables for the job and all of its workers. The dashboard shows them.

    Raises:
        RaysysError: The folder does not exist, is too large or hides modules that Ray needs, or a
            variable is a secret.
    """
    working_dir = working_dir.absolute()
    if not working_dir.is_dir():
        raise RaysysError(f"{working_dir}: no such folder: use the folder of the job")
    for name, value in (env or {}).items():
        if holds_secret(name, value):
            raise RaysysError(
                f"{name} is a secret, and the dashboard shows a job's environment: set it on "
                "the nodes (clusters/README.md), or use a setting of the type "
                "raysys.secrets.Secret with the value file:PATH"
            )
    # A virtual environment may have any name, and a storage root may be any folder.
    folders = [marker.parent for marker in working_dir.glob("*/pyvenv.cfg")]
    root = Path(Storage().root)
    if root.is_absolute() and working_dir.resolve() in root.resolve().parents:
        folders.append(working_dir / root.resolve().relative_to(working_dir.resolve()))
    paths = [folder.relative_to(working_dir).as_posix() for folder in folders]
    escaped = ["/" + re.sub(r"([*?\[\]!#\\ ])", r"\\\1", path) for path in paths]
    excludes = [*_EXCLUDES, *escaped]
    check_folder(working_dir, excludes)
    return {
        "working_dir": str(working_dir),
        "excludes": excludes,
        "env_vars": dict(env or {}),
    }


def environment(*, own_head: bool) -> dict[str, str]:
    """Variables of this process that processes on the cluster need as well.

    Args:
        own_head: Whether the cluster is this user's head on this machine; another one has a default
            storage root of its own, which applies unless RAYSYS_STORAGE is set.
    """
    variables = {}
    if own_head or os.environ.get("RAYSYS_STORAGE"):
        variables["RAYSYS_STORAGE"] = Storage().root
    if server := os.environ.get("MLFLOW_TRACKING_URI"):
        variables["MLFLOW_TRACKING_URI"] = server
    return variables
