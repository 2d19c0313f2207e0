"""The command line of raysys: clusters, jobs, and what they leave."""

from importlib.metadata import version
from typing import Annotated

import typer

from raysys import cluster
from raysys.cli import _cluster, _jobs, _runs, _workflow
from raysys.cli._data import data
from raysys.cli._keys import keys
from raysys.cli._runs import runs
from raysys.errors import RaysysError

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raysys {version('raysys')}")
        raise typer.Exit


@app.callback()
def _options(
    shown: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True,
                           help="Print the version.")
    ] = False,
) -> None:  # fmt: skip
    pass


# In the order of `--help`.
for command in (
    _cluster.up, _cluster.down, _cluster.status, _cluster.doctor, _cluster.check,
    _jobs.submit, _jobs.jobs, _jobs.logs, _jobs.stop,
    _workflow.run, _workflow.steps, _workflow.prune, _runs.lineage, _runs.audit,
):  # fmt: skip
    app.command()(command)
app.add_typer(runs, name="runs")
app.add_typer(_workflow.schedules, name="schedule")
app.add_typer(data, name="data")
app.add_typer(keys, name="key")


def main() -> None:
    """Entry point: errors of ours are one line, without a traceback."""
    cluster.enable_token_auth()
    try:
        app(standalone_mode=True)
    except RaysysError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
