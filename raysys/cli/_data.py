"""`raysys data`: files and schemas."""

from pathlib import Path
from typing import Annotated

import typer
from typer import echo as say

from raysys import cluster
from raysys.errors import RaysysError
from raysys.imports import lazy_import

pq = lazy_import("pyarrow.parquet")

data = typer.Typer(no_args_is_help=True, help="Validation of data files, and inference of schemas.")


@data.command("check")
def check_data(
    file: str,
    schema: Annotated[Path, typer.Option(help="Schema file, YAML or JSON.")],
    tables: Annotated[
        list[str] | None,
        typer.Option(help="name=FILE: a table of the schema's foreign keys."),
    ] = None,
    quarantine: Annotated[
        Path | None, typer.Option(help="Parquet file for the rows in quarantine.")
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
    say(f"{checked.rows} rows: {len(checked.good)} good, {len(checked.quarantine)} in quarantine")
    for reason, count in checked.reasons.items():
        say(f"  {count} x {reason}; first in {checked.examples[reason]}")
    for figure in checked.figures:
        say(f"  {'holds' if figure.holds else 'FAILS'}: {figure}")
    if quarantine is not None:
        pq.write_table(checked.quarantine.to_arrow(), quarantine)
        say(f"quarantine: {quarantine}")
    if failure is not None:
        raise failure
    if len(checked.quarantine):
        raise typer.Exit(1)


@data.command("infer")
def infer_schema(
    file: str,
    name: Annotated[str | None, typer.Option(help="Name of the schema.")] = None,
) -> None:
    """Print a schema that a file satisfies, to be edited and to check the next one with."""
    from raysys.data import infer, read

    cluster.connect()
    schema = infer(read(file, raw=True), name or Path(file).name.split(".")[0])
    say(f"# Inferred from {file}. Edit it: what it does not know are your rules.")
    say(schema.to_yaml().rstrip())
