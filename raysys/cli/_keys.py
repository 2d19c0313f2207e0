"""`raysys key`: API keys of protected applications."""

from typing import Annotated

import typer
from typer import echo as say

from raysys.storage import Storage

keys = typer.Typer(no_args_is_help=True, help="API keys of protected applications.")


@keys.command("add")
def add_key(
    name: str,
    rate: Annotated[int, typer.Option(help="Requests a second at most.")] = 100,
    max_body_bytes: Annotated[int, typer.Option(help="Of a request.")] = 1 << 20,
) -> None:
    """Make an API key and print it; it is not kept and cannot be shown again."""
    from raysys import serve

    say(serve.create_key(Storage(), name, rate_per_s=rate, max_body_bytes=max_body_bytes))


@keys.command("list")
def list_keys() -> None:
    """Names and limits of all API keys."""
    from raysys import serve

    for one in serve.read_keys(Storage()):
        say(f"{one.name}: {one.rate_per_s} requests/s, bodies up to {one.max_body_bytes} bytes")


@keys.command("revoke")
def revoke_key(name: str) -> None:
    """Let an API key in no more, within seconds."""
    from raysys import serve

    serve.revoke_key(Storage(), name)
