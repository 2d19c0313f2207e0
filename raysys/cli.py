"""The command line: `raysys up`, `submit`, `down`, `runs`, `lineage`, `data`, `key`."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from raysys import cluster
from raysys.errors import RaysysError, StorageError
from raysys.storage import Storage
from raysys.tracking import git_commit
from raysys.workflow import say

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)

key = typer.Typer(no_args_is_help=True, help="API keys of protected applications.")
app.add_typer(key, name="key")

data = typer.Typer(no_args_is_help=True, help="Files: what is wrong in them, what they are like.")
app.add_typer(data, name="data")

runs = typer.Typer(help="Runs that were recorded: what they were told and what came of it.")
app.add_typer(runs, name="runs")

Cpus = Annotated[int | None, typer.Option(help="Logical CPUs of a local cluster.")]


@app.command()
def up(cpus: Cpus = None) -> None:
    """Start a Ray head on this machine, or say where the running one is."""
    head = cluster.start_local(Storage(), cpus=cpus)
    say(f"Ray at {head.address}, dashboard at {head.dashboard_url}")


@app.command()
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


@app.command()
def down() -> None:
    """Stop the head that `up` or `submit` started, and all that runs on it."""
    say("stopped" if cluster.stop_local(Storage()) else "nothing to stop")


@app.command()
def lineage(name: Annotated[str, typer.Argument(help="Of a model, a run or a Table.")]) -> None:
    """Print where a model, a run or a Table comes from, back to files."""
    from raysys.data import lineage_text, read_lineage
    from raysys.models import ModelStore

    storage = Storage()
    if records := read_lineage(storage, name):
        say(lineage_text(records))
        return
    run = storage.read_bytes(f"runs/{name}/run.json")
    if run:
        known = json.loads(run)
    else:
        try:
            model = ModelStore(storage).get(name)
        except StorageError as error:
            raise StorageError(
                f"{name!r} is no Table, run or model of {storage.root}: give the id that a run "
                "says of its Tables, a folder's name below runs/, or a model's name"
            ) from error
        known = model.manifest(storage)
        say(f"model {name} version {model.version}")
    say(f"run {known['id']}, code {known['git_commit']}")
    tables = known["facts"].get("tables", {})
    for table, facts in tables.items():
        say(f"\n{table}: {facts['rows']} rows, fingerprint {facts['fingerprint']}")
        say(lineage_text(read_lineage(storage, facts["lineage"])))
    if not tables:
        say("it recorded no Tables: Run.log_tables does")


@key.command("add")
def add_key(
    name: str,
    rate: Annotated[int, typer.Option(help="Requests a second at most.")] = 100,
    max_body_bytes: Annotated[int, typer.Option(help="Of a request.")] = 1 << 20,
) -> None:
    """Make an API key and print it; it is not kept and cannot be shown again."""
    from raysys import serve

    say(serve.create_key(Storage(), name, rate_per_s=rate, max_body_bytes=max_body_bytes))


@key.command("list")
def list_keys() -> None:
    """Names and limits of all API keys."""
    from raysys import serve

    for one in serve.read_keys(Storage()):
        say(f"{one.name}: {one.rate_per_s} requests/s, bodies up to {one.max_body_bytes} bytes")


@key.command("revoke")
def revoke_key(name: str) -> None:
    """Let an API key in no more, within seconds."""
    from raysys import serve

    serve.revoke_key(Storage(), name)


@data.command("check")
def check_data(
    file: str,
    schema: Annotated[Path, typer.Option(help="A schema, as YAML or JSON.")],
    tables: Annotated[
        list[str] | None, typer.Option(help="name=FILE: a table that the schema's keys name.")
    ] = None,
    quarantine: Annotated[
        Path | None, typer.Option(help="A Parquet file to keep the bad rows in.")
    ] = None,
) -> None:
    """Check a file's rows against a schema.

    Says how many rows are good and, of those that are not, the reasons, each with the place of
    the first. The status is 0 if all is as the schema has it, 1 if a row or a table check fails.
    """
    from raysys.data import CheckError, Schema, check, read

    if not schema.is_file():
        raise RaysysError(f"{schema}: no such file. `raysys data infer {file}` writes a schema")
    given = Schema.from_yaml(schema.read_text())
    named = [text.partition("=") for text in tables or []]
    if wrong := [name for name, _, path in named if not (name and path)]:
        raise RaysysError(f"--tables {wrong[0]}: give name=FILE")
    cluster.connect()
    others = {name: read(path) for name, _, path in named}
    failure = None
    try:
        checked = check(read(file, raw=True), given, tables=others)
    except CheckError as error:
        checked, failure = error.checked, error
    say(f"{checked.rows} rows: {checked.good.rows} good, {checked.quarantine.rows} in quarantine")
    for reason, count in checked.reasons.items():
        say(f"  {count} x {reason}; first in {checked.examples[reason]}")
    for figure in checked.figures:
        say(f"  {'holds' if figure.holds else 'FAILS'}: {figure}")
    if quarantine is not None:
        import pyarrow.parquet as pq

        pq.write_table(checked.quarantine.arrow(), quarantine)
        say(f"quarantine: {quarantine}")
    if failure is not None:
        raise failure
    if checked.quarantine.rows:
        raise typer.Exit(1)


@data.command("infer")
def infer_schema(
    file: str, name: Annotated[str | None, typer.Option(help="The schema's; the file's.")] = None
) -> None:
    """Print a schema that a file satisfies, to be edited and to check the next one with."""
    from raysys.data import infer, read

    cluster.connect()
    schema = infer(read(file, raw=True), name or Path(file).name.split(".")[0])
    say(f"# Inferred from {file}. Edit it: what it does not know are your rules.")
    say(schema.to_yaml().rstrip())


@runs.callback(invoke_without_command=True)
def list_runs(
    context: typer.Context,
    all: Annotated[bool, typer.Option("--all", help="With the parts of each run.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many runs.")] = 20,
) -> None:
    """List runs, the newest first; `show` and `compare` say more."""
    if context.invoked_subcommand is not None:
        return
    from raysys import tracking

    recorded = tracking.Runs(Storage())
    newest = recorded.newest(limit)
    if not newest:
        say(f"no runs in {tracking.shown_uri(recorded.uri)}")
        return
    say(tracking.listing(newest, recorded.descendants(newest) if all else {}))


@runs.command("show")
def show_run(name: str) -> None:
    """Print a run's settings, tags, metrics, last values of its curves, and parts.

    NAME is a run's name or the beginning of it, PARENT/NAME for a part, or MLflow's id.
    """
    from raysys import tracking

    recorded = tracking.Runs(Storage())
    say(tracking.details(recorded, recorded.find(name)))


@runs.command("compare")
def compare_runs(
    names: Annotated[list[str], typer.Argument(help="Two runs or more.")],
    metric: Annotated[str | None, typer.Option(help="This one alone.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A PNG file for the curves.")] = None,
) -> None:
    """Print settings that differ between runs, and their metrics side by side."""
    from raysys import tracking

    if len(names) < 2:
        raise RaysysError(f"{names[0]}: give two runs or more; `raysys runs` lists them")
    recorded = tracking.Runs(Storage())
    found = [recorded.find(name) for name in names]
    say(tracking.comparison(found, metric))
    if plot is not None:
        plot.write_bytes(tracking.comparison_plot(recorded, found, metric))
        say(f"\nplot: {plot}")


def main() -> None:
    """Entry point: errors of ours are one line, without a traceback."""
    cluster.enable_token_auth()
    try:
        app(standalone_mode=True)
    except RaysysError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
