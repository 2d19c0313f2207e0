"""`raysys up`, `down`, `status`, `doctor`: the cluster."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from typer import echo as say

from raysys import cluster
from raysys.storage import Storage

Cpus = Annotated[int | None, typer.Option(help="Logical CPUs of a local cluster.")]


def up(
    cpus: Cpus = None,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt what Ray's processes say.")] = False,
) -> None:
    """Start a Ray head on this machine, or say where the running one is."""
    head = cluster.start_local(Storage(), cpus=cpus, tls=tls)
    say(f"Ray at {head.address}, dashboard at {head.dashboard_url}")
    if head.tls:
        say("jobs need nothing more; a process that connects by that address needs")
        for name, value in head.tls.items():
            say(f"  export {name}={value}")


def down() -> None:
    """Stop the head that `up` or `submit` started, and all that runs on it."""
    say("stopped" if cluster.stop_local(Storage()) else "nothing to stop")


def status() -> None:
    """Print what the cluster has and what it does.

    The cluster is the one whose dashboard RAY_ADDRESS names, else the one on this machine.
    """
    url = cluster.find_dashboard(Storage())
    say(f"dashboard: {url}")
    for line in cluster.status_lines(cluster.Dashboard(url)):
        say(line)


def doctor() -> None:
    """Check the cluster and the way to it; each finding comes with its remedy.

    A small job looks at the head. The status is 1 if a check fails.
    """
    storage = Storage()
    head = None if os.environ.get("RAY_ADDRESS") else cluster.remembered(storage)
    url = head.dashboard_url if head else None
    if os.environ.get("RAY_ADDRESS"):
        url = cluster.find_dashboard(storage)
    if url is None:
        say("no cluster: `raysys up` starts one, RAY_ADDRESS names one; looking at this machine")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for found in cluster.examine(url, head, storage, Path(folder)):
            say(f"{found.verdict:<5} {found.name}: {found.fact}")
            if found.remedy:
                say(f"      {found.remedy}")
            failed = failed or found.verdict == "fail"
    if failed:
        raise typer.Exit(1)


def check(
    file: Path,
    crds: Annotated[
        Path | None, typer.Option(help="Folder of KubeRay's definitions, for its manifests.")
    ] = None,
) -> None:
    """Look for mistakes in the file of a cluster; Ray and Kubernetes pass over misspelt keys."""
    problems = cluster.check_config(file, crds=crds)
    for problem in problems:
        say(str(problem))
    if problems:
        raise typer.Exit(1)
    say(f"{file}: no mistakes found")
