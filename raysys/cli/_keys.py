"""`raysys key`: API keys of protected applications."""

import time
from typing import Annotated, Literal

import typer

from raysys.cli._times import duration, local
from raysys.console import say
from raysys.storage import Storage

keys = typer.Typer(no_args_is_help=True, help="API keys of protected applications.")


@keys.command("add")
def add_key(
    name: str,
    rate: Annotated[int, typer.Option(help="Maximum requests per second.")] = 100,
    max_body_bytes: Annotated[int, typer.Option(help="Maximum size of a request body.")] = 1 << 20,
    expires: Annotated[
        str | None, typer.Option(help="Lifetime such as 12h, 30d or 26w; unlimited by default.")
    ] = None,
    scope: Annotated[
        Literal["read", "serve"],
        typer.Option(help="`serve`, or `read` for descriptions and statistics alone."),
    ] = "serve",
    application: Annotated[
        list[str] | None, typer.Option(help="Application that it is for, repeatable; else all.")
    ] = None,
) -> None:
    """Create an API key and print it once; only its digest is stored."""
    from raysys import gateway

    expires_s = None if expires is None else duration(expires).total_seconds()
    secret = gateway.create_key(
        Storage().check(), name, rate_per_s=rate, max_body_bytes=max_body_bytes,
        expires_s=expires_s, scope=scope, applications=application or (),
    )  # fmt: skip
    say(secret)


@keys.command("list")
def list_keys() -> None:
    """List API keys with their limits and expiry."""
    from raysys import gateway

    for key in gateway.read_keys(Storage().check(writable=False)):
        if key.expires is None:
            until = "never expires"
        else:
            until = f"{'EXPIRED' if key.expires <= time.time() else 'expires'} {local(key.expires)}"
        limits = f"{key.rate_per_s} requests/s, bodies up to {key.max_body_bytes} bytes"
        granted = f"{key.scope} {', '.join(key.applications) or 'all applications'}"
        say(f"{key.name}: {granted}, {limits}, {until}")


@keys.command("revoke")
def revoke_key(name: str) -> None:
    """Revoke an API key; it takes effect within seconds."""
    from raysys import gateway

    gateway.revoke_key(Storage().check(), name)
