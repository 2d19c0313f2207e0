"""`raysys submit`: jobs on a cluster."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import echo as say

from raysys import cluster
from raysys.errors import RaysysError
from raysys.storage import Storage
from raysys.tracking import git_commit


def submit(job: Path, arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Run a job of this folder on the cluster, and stream its progress.

    The cluster is the one whose dashboard RAY_ADDRESS names (http://HOST:8265), else the one
    on this machine, started if need be. Give the job's own flags after `--`.
    """
    if not job.is_file():
        raise RaysysError(f"{job}: no such file. Give a job's path, such as jobs/recommender.py")
    address = os.environ.get("RAY_ADDRESS") or cluster.start_local(Storage()).dashboard_url
    module = ".".join(job.with_suffix("").parts)
    say(f"dashboard: {address}")
    env = {"RAYSYS_GIT_COMMIT": git_commit(), "RAYSYS_STORAGE": Storage().root}
    if "RAY_ADDRESS" in os.environ and "RAYSYS_STORAGE" not in os.environ:
        del env["RAYSYS_STORAGE"]  # the cluster's own default, not this machine's home
    if server := os.environ.get("MLFLOW_TRACKING_URI"):
        env["MLFLOW_TRACKING_URI"] = server
    cluster.submit(
        shlex.join(["python", "-m", module, *(arguments or [])]),
        dashboard_url=address,
        working_dir=Path.cwd(),
        env=env,
    )
    ray = os.path.relpath(Path(sys.executable).parent / "ray")
    say(f"dashboard: {address} (its token: `{ray} get-auth-token`)")
