"""`raysys key`: API keys of protected applications."""

import time
from typing import Annotated

import typer
from typer import echo as say

from raysys.cli._times import duration, local
from raysys.storage import Storage

keys = typer.Typer(no_args_is_help=True, help="API keys of protected applications.")


@keys.command("add")
def add_key(
    name: str,
    rate: Annotated[int, typer.Option(help="Requests a second at most.")] = 100,
    max_body_bytes: Annotated[int, typer.Option(help="Of a request.")] = 1 << 20,
    expires: Annotated[
        str | None, typer.Option(help="After 12h, 30d, 26w; else it never does.")
    ] = None,
) -> None:
    """Make an API key and print it; it is not kept and cannot be shown again."""
    from raysys import gateway

    expires_s = None if expires is None else duration(expires).total_seconds()
    say(
        gateway.create_key(
            Storage(), name, rate_per_s=rate, max_body_bytes=max_body_bytes, expires_s=expires_s
        )
    )


@keys.command("list")
def list_keys() -> None:
    """Names, limits and expiry of all API keys."""
    from raysys import gateway

    for one in gateway.read_keys(Storage()):
        if one.expires is None:
            until = "never expires"
        else:
            until = f"{'EXPIRED' if one.expires <= time.time() else 'expires'} {local(one.expires)}"
        limits = f"{one.rate_per_s} requests/s, bodies up to {one.max_body_bytes} bytes"
        say(f"{one.name}: {limits}, {until}")


@keys.command("revoke")
def revoke_key(name: str) -> None:
    """Let an API key in no more, within seconds."""
    from raysys import gateway

    gateway.revoke_key(Storage(), name)
