"""`raysys runs`, `lineage`, `audit`: recorded runs, where data comes from, and who did what."""

from pathlib import Path
from typing import Annotated

import typer
from typer import echo as say

from raysys import audit as log
from raysys.cli._times import moment
from raysys.errors import RaysysError, StorageError
from raysys.storage import Storage, read_record

runs = typer.Typer(help="Recorded runs: parameters and results.")


def lineage(
    name: Annotated[str, typer.Argument(help="A model, a run, or a Table's lineage id.")],
) -> None:
    """Print the lineage of a model, run or Table back to files."""
    from raysys.data import lineage_text, read_lineage
    from raysys.models import ModelStore

    storage = Storage().check(writable=False)
    if records := read_lineage(storage, name):
        say(lineage_text(records))
        return
    record = read_record(storage, f"runs/{name}/run.json")
    if record is None:
        try:
            model = ModelStore(storage).get(name)
        except StorageError as error:
            raise StorageError(
                f"{name!r} is not a Table or run in {storage.root}, and {error}"
            ) from error
        record = model.manifest(storage)
        say(f"model {name} version {model.version}")
    say(f"run {record['id']}, code {record['git_commit']}")
    tables = record["facts"].get("tables", {})
    for table, facts in tables.items():
        say(f"\n{table}: {facts['rows']} rows, fingerprint {facts['fingerprint']}")
        say(lineage_text(read_lineage(storage, facts["lineage"])))
    if not tables:
        say("the run recorded no Tables: call Run.log_tables in a step")


def audit(
    since: Annotated[str, typer.Option(help="Age such as 7d, or a date.")] = "7d",
    action: Annotated[
        str | None, typer.Option(help="An action, or a kind of actions: job, deploy, key, up.")
    ] = None,
) -> None:
    """Print the audit log of the storage root: who did what, when and from where."""
    lines = list(log.read(Storage().check(writable=False), since=moment(since), action=action))
    for line in lines:
        say(str(line))
    if not lines:
        say(f"no entries since {since} in {Storage().uri('audit')}")


@runs.callback(invoke_without_command=True)
def list_runs(
    context: typer.Context,
    all: Annotated[bool, typer.Option("--all", help="Include nested runs.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of runs.")] = 20,
) -> None:
    """List runs, newest first; `show` and `compare` print details."""
    if context.invoked_subcommand is not None:
        return
    from raysys import tracking

    recorded = tracking.Runs(Storage().check(writable=False))
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

    recorded = tracking.Runs(Storage().check(writable=False))
    say(tracking.details(recorded, recorded.find(name)))


@runs.command("compare")
def compare_runs(
    names: Annotated[list[str], typer.Argument(help="Two or more runs.")],
    metric: Annotated[str | None, typer.Option(help="Only this metric.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file for a plot of the curves.")] = None,
) -> None:
    """Print settings that differ between runs, and their metrics side by side."""
    from raysys import tracking

    if len(names) < 2:
        raise RaysysError(f"{names[0]}: give two or more runs; `raysys runs` lists them")
    recorded = tracking.Runs(Storage().check(writable=False))
    selected = [recorded.find(name) for name in names]
    say(tracking.comparison(selected, metric))
    if plot is not None:
        plot.write_bytes(tracking.comparison_plot(recorded, selected, metric))
        say(f"\nplot: {plot}")
