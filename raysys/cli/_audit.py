"""`raysys audit`: who did what."""

from typing import Annotated

import typer
from typer import echo as say

from raysys import audit as log
from raysys.cli._times import moment
from raysys.storage import Storage


def audit(
    since: Annotated[str, typer.Option(help="A span until now, or a date.")] = "7d",
    action: Annotated[
        str | None, typer.Option(help="This one, or all of a kind: job, deploy, key, up.")
    ] = None,
) -> None:
    """Print who did what, when and from where, of what this storage root knows."""
    lines = list(log.read(Storage(), since=moment(since), action=action))
    for line in lines:
        say(str(line))
    if not lines:
        say(f"nothing since {since} in {Storage().uri('audit')}")
