"""`raysys runs`, `lineage`: what was recorded."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import echo as say

from raysys.errors import RaysysError, StorageError
from raysys.storage import Storage

runs = typer.Typer(help="Runs that were recorded: what they were told and what came of it.")


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
