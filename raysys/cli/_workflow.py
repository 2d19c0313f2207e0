"""`raysys run`, `steps`, `schedule`: jobs and their steps, now and by the clock."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import echo as say

from raysys import cluster
from raysys.cli._jobs import environment, followed, module_of
from raysys.cli._times import duration
from raysys.errors import RaysysError
from raysys.storage import Storage

schedules = typer.Typer(no_args_is_help=True, help="Jobs that the cluster starts by the clock.")

Arguments = Annotated[list[str] | None, typer.Argument(help="The job's own flags, after `--`.")]


def run(
    job: Path,
    arguments: Arguments = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Run this step and all that follow, though unchanged."),
    ] = None,
    steps: Annotated[bool, typer.Option(help="Only draw the steps.")] = False,
) -> None:
    """Run a job of this folder here, its steps on the cluster.

    The cluster is that of RAY_ADDRESS, else the one that `raysys up` started, else one that ends
    with the job. Steps that an earlier run has computed are skipped.
    """
    flags = [*(["--from", start] if start else []), *(["--steps"] if steps else [])]
    command = [sys.executable, "-m", module_of(job), *flags, *(arguments or [])]
    env = dict(os.environ)
    head = cluster.remembered(Storage())
    if head and "RAY_ADDRESS" not in env:
        env["RAY_ADDRESS"] = head.address
    raise typer.Exit(subprocess.run(command, env=env, check=False).returncode)


def steps(
    name: Annotated[str | None, typer.Argument(help="A run; the newest by default.")] = None,
    mermaid: Annotated[bool, typer.Option(help="As a flow chart for a Markdown page.")] = False,
) -> None:
    """Draw the steps of a run and how far each is, also while it runs."""
    from raysys.workflow import draw_record

    storage = Storage()
    if name is None:
        # A run's name ends with the moment it began and four letters.
        named = sorted(storage.names("runs"), key=lambda run: run.split("-")[-3:])
        if not named:
            raise RaysysError(f"no runs in {storage.root}: `raysys submit JOB` makes one")
        name = named[-1]
    record = storage.read_bytes(f"runs/{name}/run.json")
    if record is None:
        raise RaysysError(f"no run {name!r} in {storage.root}: `raysys runs` lists them")
    known = json.loads(record)
    if not mermaid:
        say(f"{known['id']}: {known['status'].lower()}")
    say(draw_record(known, "mermaid" if mermaid else "text"))


def prune(
    older_than: Annotated[str, typer.Option(help="Their age: 12h, 30d, 26w.")] = "30d",
) -> None:
    """Remove steps' results of an age; runs that want them compute them again."""
    from raysys.workflow import prune

    removed = prune(Storage(), duration(older_than))
    say(f"{len(removed)} results removed")


@schedules.command("add")
def add(
    name: str,
    cron: Annotated[str, typer.Argument(help="Such as '30 2 * * *': each night at half past two.")],
    job: Path,
    arguments: Arguments = None,
    zone: Annotated[str, typer.Option(help="Time zone, such as Europe/Berlin.")] = "UTC",
) -> None:
    """Let the cluster run a job of this folder by the clock, from a copy of the folder."""
    command = shlex.join(["python", "-m", module_of(job), *(arguments or [])])
    _there("add", name, cron, command, zone)


@schedules.command("list")
def listed() -> None:
    """List schedules, with their last and their next run."""
    _there("list")


@schedules.command("remove")
def remove(name: str) -> None:
    """Forget a schedule; a run that it has started goes on."""
    _there("remove", name)


def _there(action: str, *words: str) -> None:
    """Do it on the cluster, as a job: its scheduler is an actor, and its storage may be its own."""
    address = (
        cluster.find_dashboard(Storage())
        if "RAY_ADDRESS" in os.environ
        else cluster.start_local(Storage()).dashboard_url
    )
    jobs = cluster.Jobs(address)
    submitted = jobs.submit(
        shlex.join(["python", "-m", "raysys.workflow.schedules", action, *words]),
        working_dir=Path.cwd(),
        storage=Storage(),
        name=f"schedule-{action}",
        env=environment(),
    )
    followed(jobs, submitted)
