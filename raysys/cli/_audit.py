"""`raysys audit`: the audit log."""

from typing import Annotated

import typer
from typer import echo as say

from raysys import audit as log
from raysys.cli._times import moment
from raysys.storage import Storage


def audit(
    since: Annotated[str, typer.Option(help="Age such as 7d, or a date.")] = "7d",
    action: Annotated[
        str | None, typer.Option(help="An action, or a kind of actions: job, deploy, key, up.")
    ] = None,
) -> None:
    """Print the audit log of the storage root: who did what, when and from where."""
    lines = list(log.read(Storage(), since=moment(since), action=action))
    for line in lines:
        say(str(line))
    if not lines:
        say(f"no entries since {since} in {Storage().uri('audit')}")
