"""`raysys run`, `steps`, `prune`, `schedule`: jobs, their steps and their schedules."""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import echo as say

from raysys import cluster
from raysys.cli._jobs import (
    command_of,
    exit_status,
    job_environment,
    module_of,
    run_schedule_action,
)
from raysys.cli._times import duration
from raysys.errors import RaysysError
from raysys.storage import Storage, read_record

schedules = typer.Typer(no_args_is_help=True, help="Jobs that the cluster starts on schedule.")

Arguments = Annotated[list[str] | None, typer.Argument(help="The job's own flags, after `--`.")]


def run(
    job: Path,
    arguments: Arguments = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Run this step and its dependents, even if unchanged."),
    ] = None,
    steps: Annotated[bool, typer.Option(help="Only draw the steps.")] = False,
) -> None:
    """Run a job of this folder with its driver here and its steps on the cluster.

    The cluster is that of RAY_ADDRESS, else the one that `raysys up` started, else one that ends
    with the job. Steps with results of an earlier run are skipped.
    """
    flags = [*(["--from", start] if start else []), *(["--steps"] if steps else [])]
    command = [sys.executable, "-m", module_of(job), *flags, *(arguments or [])]
    cluster.check_names(Path.cwd(), [*Path.cwd().glob("*.py"), *Path.cwd().glob("*/__init__.py")])
    with subprocess.Popen(command) as driver:
        signal.signal(signal.SIGTERM, lambda *_: driver.terminate())
        while driver.poll() is None:
            with suppress(KeyboardInterrupt):  # Ctrl-C reaches the driver as well, which cleans up
                driver.wait()
    raise typer.Exit(exit_status(driver.returncode))


def steps(
    name: Annotated[str | None, typer.Argument(help="Run; the newest by default.")] = None,
    mermaid: Annotated[bool, typer.Option(help="Draw a Mermaid flow chart.")] = False,
) -> None:
    """Draw the steps of a run with their progress, also while it runs."""
    from raysys.workflow import draw_record

    storage = Storage().check(writable=False)
    if name is None:
        # A run's name ends with its start time and four letters.
        names = sorted(storage.names("runs"), key=lambda run: run.split("-")[-3:])
        if not names:
            raise RaysysError(f"no runs in {storage.root}: `raysys submit JOB` starts one")
        name = names[-1]
    run = read_record(storage, f"runs/{name}/run.json")
    if run is None:
        raise RaysysError(f"no run {name!r} in {storage.root}: `raysys runs` lists them")
    if not mermaid:
        say(f"{run['id']}: {_status(storage, run).lower()}")
    say(draw_record(run, "mermaid" if mermaid else "text"))


def _status(storage: Storage, run: dict[str, Any]) -> str:
    """Status of a run; a driver that was killed leaves RUNNING in the record, and MLflow knows."""
    if run["status"] != "RUNNING":
        return run["status"]
    from raysys import tracking

    try:
        return tracking.run_status(Storage(storage.uri(f"runs/{run['id']}")))
    except RaysysError as error:
        say(f"whether it still runs is not known: {error}")
        return "RUNNING"


def prune(
    older_than: Annotated[str, typer.Option(help="Minimum age such as 12h, 30d or 26w.")] = "30d",
) -> None:
    """Remove old step results; later runs compute them again."""
    from raysys.workflow import prune

    removed = prune(Storage().check(), duration(older_than))
    say(f"{len(removed)} results removed")


@schedules.command("add")
def add(
    name: str,
    cron: Annotated[
        str,
        typer.Argument(
            help="Five fields, such as '30 2 * * *' for 02:30 each day; or @reboot, for each start "
            "of a cluster."
        ),
    ],
    job: Path,
    arguments: Arguments = None,
    timezone: Annotated[str, typer.Option(help="Time zone, such as Europe/Berlin.")] = "UTC",
) -> None:
    """Schedule a job of this folder on the cluster, which keeps a copy of the folder."""
    command = command_of(module_of(job), arguments)
    runtime_env = job_environment()
    with cluster.submission_dashboard(Storage()) as address:
        run_schedule_action(address, runtime_env, "add", name, cron, command, timezone)


@schedules.command("list")
def list_schedules() -> None:
    """List schedules with their last and next runs."""
    run_schedule_action(cluster.find_dashboard(), job_environment(), "list")


@schedules.command("remove")
def remove(name: str) -> None:
    """Remove a schedule; a run that has started continues."""
    run_schedule_action(cluster.find_dashboard(), job_environment(), "remove", name)
