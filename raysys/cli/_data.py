"""`raysys data`: validation of files and inference of schemas."""

from pathlib import Path
from typing import Annotated

import typer

from raysys import cluster
from raysys.console import say
from raysys.errors import RaysysError
from raysys.imports import lazy_import

pq = lazy_import("pyarrow.parquet")

data = typer.Typer(no_args_is_help=True, help="Validation of data files, and inference of schemas.")


@data.command("validate")
def validate_data(
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
    """Validate a file's rows against a schema.

    Prints the number of valid rows and the reasons of all others, with the place of the first.
    The exit status is 0 if the file satisfies the schema, 1 if a row or a table check fails.
    """
    from raysys.data import Schema, ValidationError, read, validate

    if not schema.is_file():
        raise RaysysError(f"{schema}: no such file. `raysys data infer {file}` writes a schema")
    rules = Schema.from_yaml(schema.read_text())
    pairs = [text.partition("=") for text in tables or []]
    if wrong := [name for name, _, path in pairs if not (name and path)]:
        raise RaysysError(f"--tables {wrong[0]}: give name=FILE")
    cluster.connect()
    parents = {name: read(path) for name, _, path in pairs}
    failure = None
    try:
        result = validate(read(file, raw=True), rules, tables=parents)
    except ValidationError as error:
        result, failure = error.result, error
    say(f"{result.rows} rows: {len(result.valid)} valid, {len(result.quarantine)} in quarantine")
    for reason, count in result.reasons.items():
        say(f"  {count} x {reason}; first in {result.examples[reason]}")
    for check in result.checks:
        say(f"  {'passed' if check.passed else 'FAILED'}: {check}")
    if quarantine is not None:
        pq.write_table(result.quarantine.to_arrow(), quarantine)
        say(f"quarantine: {quarantine}")
    if failure is not None:
        raise failure
    if len(result.quarantine):
        raise typer.Exit(1)


@data.command("infer")
def infer_data(
    file: str,
    name: Annotated[
        str | None, typer.Option(help="Name of the schema; by default the file's.")
    ] = None,
) -> None:
    """Print a schema that a file satisfies, to be edited and to validate the next file with."""
    from raysys.data import infer_schema, read

    cluster.connect()
    schema = infer_schema(read(file, raw=True), name or Path(file).name.split(".")[0])
    say(f"# Inferred from {file}. Add the rules that the data alone does not show.")
    say(schema.to_yaml().rstrip())
