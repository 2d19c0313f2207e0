"""`raysys submit`, `jobs`, `logs`, `stop`: jobs on a cluster."""

import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import echo as say

from raysys import cluster
from raysys.cli._times import local, span
from raysys.console import text_table
from raysys.errors import RaysysError
from raysys.storage import Storage

Id = Annotated[str, typer.Argument(help="Id of the job, or a unique prefix.")]


def submit(
    job: Path,
    arguments: Annotated[list[str] | None, typer.Argument()] = None,
    cpus: Annotated[
        float | None, typer.Option(min=0, help="CPUs that the job needs, checked before it starts.")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs that the job needs, checked before it starts.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Stream the job's output until it ends.")] = True,
) -> None:
    """Submit a job of this folder to the cluster, and stream its output.

    The cluster is the one whose dashboard RAY_ADDRESS names (http://HOST:8265), else the one
    on this machine, started if necessary. Put the job's own flags after `--`. Ctrl-C leaves the
    job running. The job's demand is that of the flags, else its module's DEMAND; a cluster that
    can never satisfy it refuses at once.
    """
    module = module_of(job)
    demand = cluster.declared_demand(job)
    if cpus is not None or gpus is not None:
        declared = demand or cluster.Resources(cpus=0, gpus=0)
        demand = cluster.Resources(
            cpus=declared.cpus if cpus is None else cpus,
            gpus=declared.gpus if gpus is None else gpus,
        )
    runtime_env = job_environment()
    starts_head = not (os.environ.get("RAY_ADDRESS") or cluster.local_head())
    with cluster.submission_dashboard(Storage()) as address:
        say(f"dashboard: {address}")
        if demand:
            remark = cluster.check_demand(cluster.Dashboard(address), str(job), demand)
            if remark:
                say(remark)
        jobs = cluster.Jobs(address)
        submitted = jobs.submit(
            command_of(module, arguments), runtime_env, storage=Storage(), name=job.stem
        )
    say(f"job: {submitted}")
    if starts_head:
        resume_schedules(address)
    if not wait:
        _say_still_running(submitted)
        return
    followed(jobs, submitted)
    say(f"dashboard: {address} (its token: `ray get-auth-token`)")


def jobs(
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of jobs.")] = 20,
) -> None:
    """List the jobs of the cluster, newest first."""
    submitted = _jobs().all()
    if not submitted:
        say("no jobs: `raysys submit jobs/recommender.py` starts one")
        return
    rows = []
    for job in submitted[:limit]:
        command = job.command.removeprefix("python -m ")
        short = command if len(command) <= 48 else f"{command[:45]}..."
        times = local(job.submitted), span(job.seconds)
        rows.append((job.id, short, job.status, job.by or "-", *times))
    say(text_table(["id", "job", "status", "by", "since", "for"], rows))
    if len(submitted) > limit:
        say(f"and {len(submitted) - limit} older: --limit {len(submitted)}")


def logs(
    id: Annotated[str | None, typer.Argument(help="Id of the job, or a unique prefix.")] = None,
    follow: Annotated[bool, typer.Option(help="Continue until the job ends.")] = False,
    app: Annotated[str | None, typer.Option(help="A served application.")] = None,
    request: Annotated[str | None, typer.Option(help="Id of one request to the app.")] = None,
) -> None:
    """Print the output of a job, or the log of a served application's replicas."""
    if (id is None) == (app is None):
        raise RaysysError("give the id of a job (`raysys jobs` lists them), or --app NAME")
    if app is not None:
        dashboard = cluster.Dashboard(cluster.find_dashboard())
        lines = cluster.application_log(dashboard, app, request=request)
        of = f" of request {request}: nodes that failed log, refused requests (4xx) do not"
        say("\n".join(lines) or f"no lines{of if request else ''}")
        return
    jobs = _jobs()
    job = jobs.find(str(id))
    if follow and not job.is_over:
        followed(jobs, job.id)
        return
    output = jobs.logs(job.id)
    say(output, nl=not output.endswith("\n"))


def stop(id: Id) -> None:
    """Stop a job; its stored results stay."""
    jobs = _jobs()
    job = jobs.find(id)
    if job.is_over:
        say(f"{job.id} has ended already: {job.status}")
        return
    say(f"{job.id}: {jobs.stop(job.id, Storage().check()).status}")


def module_of(job: Path) -> str:
    """Module name of a job's file, relative to this folder."""
    if not job.is_file():
        raise RaysysError(f"{job}: no such file. Give a job's path, such as jobs/recommender.py")
    if job.is_absolute() or ".." in job.parts:
        raise RaysysError(f"{job}: give a path below this folder, which is packed and sent")
    parts = job.with_suffix("").parts
    if job.suffix != ".py" or any("." in part for part in parts):
        module = Path(*(part.replace(".", "_") for part in parts)).with_suffix(".py")
        raise RaysysError(
            f"{job}: a job is imported as a module, a file NAME.py without other dots in its path: "
            f"rename it, for example to {module}"
        )
    return ".".join(parts)


def command_of(module: str, arguments: Sequence[str] | None) -> str:
    """The command line that runs a module of a job's folder."""
    return shlex.join(["python", "-m", module, *(arguments or [])])


def job_environment() -> dict[str, Any]:
    """The runtime environment of jobs from this folder, checked before a cluster starts."""
    from raysys.tracking import git_commit

    variables = {"RAYSYS_GIT_COMMIT": git_commit()}
    variables |= cluster.environment(own_head=not os.environ.get("RAY_ADDRESS"))
    return cluster.runtime_env(Path.cwd(), variables)


def followed(jobs: cluster.Jobs, id: str) -> None:
    """Stream a job's output; exit with its status if it fails."""
    try:
        ended = jobs.follow(id)
    except KeyboardInterrupt:
        say("")
        _say_still_running(id)
        return
    if ended.status != "SUCCEEDED":
        reason = "see its last lines above"
        if ended.status == "FAILED" and "exit code" not in ended.message:
            reason = ended.message  # the job did not start and has no output
        say(f"error: job {id} ended as {ended.status}: {reason}", err=True)
        raise typer.Exit(exit_status(ended.exit_code or 1))


def exit_status(code: int) -> int:
    """The status of a process as shells show it: 128 and more for one that a signal ended."""
    return 128 - code if code < 0 else code


def resume_schedules(address: str) -> None:
    """Have a cluster that has just started take up the schedules of the storage root."""
    storage = Storage()  # a removed schedule leaves its folder
    if not any(storage.exists(f"schedules/{n}/schedule.json") for n in storage.names("schedules")):
        return
    with tempfile.TemporaryDirectory() as folder:
        runtime_env = cluster.runtime_env(Path(folder), cluster.environment(own_head=True))
        run_schedule_action(address, runtime_env, "list")


def run_schedule_action(address: str, runtime_env: dict[str, Any], *action: str) -> None:
    """Run an action as a job: the scheduler is an actor, and the cluster's storage may differ."""
    jobs = cluster.Jobs(address)
    command = command_of("raysys.workflow.schedules", action)
    submitted = jobs.submit(command, runtime_env, storage=Storage(), name=f"schedule-{action[0]}")
    followed(jobs, submitted)


def _say_still_running(id: str) -> None:
    say(f"{id} is running; follow it with `raysys logs {id} --follow`, stop it with `raysys stop`")


def _jobs() -> cluster.Jobs:
    return cluster.Jobs(cluster.find_dashboard())
