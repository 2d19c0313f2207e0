"""`raysys submit`, `jobs`, `logs`, `stop`: jobs on a cluster."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer
from typer import echo as say

from raysys import cluster
from raysys.cli._times import local, span
from raysys.errors import RaysysError
from raysys.storage import Storage
from raysys.tracking import git_commit

Id = Annotated[str, typer.Argument(help="The job's id, or a beginning of it that no other has.")]
Cpus = Annotated[
    float | None, typer.Option(min=0, help="CPUs that it needs, checked before it starts.")
]
Gpus = Annotated[
    float | None, typer.Option(min=0, help="GPUs that it needs, checked before it starts.")
]


def submit(
    job: Path,
    arguments: Annotated[list[str] | None, typer.Argument()] = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    wait: Annotated[bool, typer.Option(help="Stream the job's output until it ends.")] = True,
) -> None:
    """Run a job of this folder on the cluster, and stream its progress.

    The cluster is the one whose dashboard RAY_ADDRESS names (http://HOST:8265), else the one
    on this machine, started if need be. Give the job's own flags after `--`. Ctrl-C leaves the
    job running. What the job needs is what the flags say, else its module's DEMAND; a cluster
    that can never have it refuses at once.
    """
    module = module_of(job)
    if "RAY_ADDRESS" in os.environ:
        address = cluster.find_dashboard(Storage())
    else:
        address = cluster.start_local(Storage()).dashboard_url
    say(f"dashboard: {address}")
    demand = _demand(job, cpus, gpus)
    remark = demand and cluster.check_demand(cluster.Dashboard(address), str(job), demand)
    if remark:
        say(remark)
    jobs = cluster.Jobs(address)
    submitted = jobs.submit(
        shlex.join(["python", "-m", module, *(arguments or [])]),
        working_dir=Path.cwd(),
        storage=Storage(),
        name=job.stem,
        env=environment(),
    )
    say(f"job: {submitted}")
    if not wait:
        _say_how_to_go_on(submitted)
        return
    followed(jobs, submitted)
    say(f"dashboard: {address} (its token: `ray get-auth-token`)")


def jobs(
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
) -> None:
    """List the jobs of the cluster, the newest first."""
    known = _jobs().all()
    rows = [("id", "job", "status", "by", "since", "for")]
    for job in known[:limit]:
        command = job.command.removeprefix("python -m ")
        short = command if len(command) <= 48 else f"{command[:45]}..."
        rows.append(
            (job.id, short, job.status, job.by or "-", local(job.submitted), span(job.seconds))
        )
    if not known:
        say("no jobs: `raysys submit jobs/recommender.py` starts one")
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if len(known) > limit:
        say(f"and {len(known) - limit} older: --limit {len(known)}")


def logs(
    id: Id, follow: Annotated[bool, typer.Option(help="Go on until the job ends.")] = False
) -> None:
    """Print what a job has said."""
    jobs = _jobs()
    job = jobs.find(id)
    if follow and not job.is_over:
        followed(jobs, job.id)
        return
    said = jobs.logs(job.id)
    say(said, nl=not said.endswith("\n"))


def stop(id: Id) -> None:
    """End a job; what it has stored stays."""
    jobs = _jobs()
    job = jobs.find(id)
    if job.is_over:
        say(f"{job.id} has ended already: {job.status}")
        return
    say(f"{job.id}: {jobs.stop(job.id, Storage()).status}")


def module_of(job: Path) -> str:
    """The module that a job's file is, seen from this folder."""
    if not job.is_file():
        raise RaysysError(f"{job}: no such file. Give a job's path, such as jobs/recommender.py")
    if job.is_absolute() or ".." in job.parts:
        raise RaysysError(f"{job}: give a path below this folder, which is packed and sent")
    return ".".join(job.with_suffix("").parts)


def followed(jobs: cluster.Jobs, id: str) -> None:
    """Stream a job's output; raise if it fails."""
    try:
        ended = jobs.follow(id)
    except KeyboardInterrupt:
        say("")
        _say_how_to_go_on(id)
        return
    if ended.status != "SUCCEEDED":
        why = "its last lines above say why"
        if ended.status == "FAILED" and "exit code" not in ended.message:
            why = ended.message  # it has no lines: it did not start
        raise RaysysError(f"job {id} ended as {ended.status}: {why}")


def _say_how_to_go_on(id: str) -> None:
    say(f"{id} goes on; follow it with `raysys logs {id} --follow`, end it with `raysys stop {id}`")


def _jobs() -> cluster.Jobs:
    return cluster.Jobs(cluster.find_dashboard(Storage()))


def _demand(job: Path, cpus: float | None, gpus: float | None) -> cluster.Resources | None:
    said = cluster.declared_demand(job)
    if cpus is None and gpus is None:
        return said
    said = said or cluster.Resources(cpus=0, gpus=0)
    return cluster.Resources(
        cpus=said.cpus if cpus is None else cpus, gpus=said.gpus if gpus is None else gpus
    )


def environment() -> dict[str, str]:
    """What a job is told of where it was submitted."""
    env = {"RAYSYS_GIT_COMMIT": git_commit()}
    if "RAY_ADDRESS" not in os.environ or "RAYSYS_STORAGE" in os.environ:
        # Else the cluster's own default, not this machine's home.
        env["RAYSYS_STORAGE"] = Storage().root
    if server := os.environ.get("MLFLOW_TRACKING_URI"):
        env["MLFLOW_TRACKING_URI"] = server
    return env
