"""`raysys up`, `down`: the head on this machine."""

from typing import Annotated

import typer
from typer import echo as say

from raysys import cluster
from raysys.storage import Storage

Cpus = Annotated[int | None, typer.Option(help="Logical CPUs of a local cluster.")]


def up(cpus: Cpus = None) -> None:
    """Start a Ray head on this machine, or say where the running one is."""
    head = cluster.start_local(Storage(), cpus=cpus)
    say(f"Ray at {head.address}, dashboard at {head.dashboard_url}")


def down() -> None:
    """Stop the head that `up` or `submit` started, and all that runs on it."""
    say("stopped" if cluster.stop_local(Storage()) else "nothing to stop")
