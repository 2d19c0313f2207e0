"""`raysys up`, `down`, `status`, `doctor`: the cluster."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from typer import echo as say

from raysys import cluster
from raysys.cli._jobs import resume_schedules
from raysys.storage import Storage


def up(
    cpus: Annotated[int | None, typer.Option(help="Logical CPUs of a local cluster.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt Ray's own traffic.")] = False,
) -> None:
    """Start a Ray head on this machine, or print the address of the running one.

    A head that starts takes up the schedules of the storage root.
    """
    is_new = cluster.local_head() is None
    head = cluster.start_local(Storage(), cpus=cpus, tls=tls)
    say(f"Ray at {head.address}, dashboard at {head.dashboard_url}")
    if address := os.environ.get("RAY_ADDRESS"):
        say(f"other commands mean the cluster of RAY_ADDRESS={address} until you unset it")
    if head.tls:
        say("jobs need no further settings; a process that connects to that address needs")
        for name, value in head.tls.items():
            say(f"  export {name}={value}")
    if is_new:
        resume_schedules(head.dashboard_url)


def down() -> None:
    """Stop the local head that `up` or `submit` started, with all that runs on it.

    Each user has one on a machine, whatever the storage root.
    """
    head = cluster.stop_local(Storage().check())
    say(f"stopped the Ray head at {head.address}" if head else "nothing to stop")


def status() -> None:
    """Print the cluster's nodes, resources, pending demands, applications, indexes and jobs.

    The cluster is the one whose dashboard RAY_ADDRESS names, else the one on this machine.
    """
    url = cluster.find_dashboard()
    say(f"dashboard: {url}")
    for line in cluster.status_lines(cluster.Dashboard(url)):
        say(line)


def doctor() -> None:
    """Check the cluster and the connection to it, and print a remedy for each problem.

    A small job inspects the head. The exit status is 1 if a check fails.
    """
    storage = Storage()
    head, url = None, None
    if os.environ.get("RAY_ADDRESS"):
        url = cluster.find_dashboard()
    elif head := cluster.local_head():
        url = head.dashboard_url
    else:
        say("no cluster: `raysys up` starts one, RAY_ADDRESS names one; looking at this machine")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for result in cluster.examine(url, head, storage, Path(folder)):
            say(f"{result.verdict:<5} {result.name}: {result.fact}")
            if result.remedy:
                say(f"      {result.remedy}")
            failed = failed or result.verdict == "fail"
    if failed:
        raise typer.Exit(1)


def check(
    file: Path,
    crds: Annotated[
        Path | None, typer.Option(help="Folder of KubeRay's custom resource definitions.")
    ] = None,
) -> None:
    """Check a cluster configuration strictly; Ray and Kubernetes ignore misspelt keys."""
    problems = cluster.check_config(file, crds=crds)
    for problem in problems:
        say(str(problem))
    if problems:
        raise typer.Exit(1)
    say(f"{file}: no mistakes found")
