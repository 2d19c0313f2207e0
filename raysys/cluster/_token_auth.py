"""Ray's token authentication in this process."""

import contextlib
import os
import secrets

from raysys.cluster._certificates import create_file
from raysys.secrets import cluster_token, token_path


def enable_token_auth() -> None:
    """Enable Ray's token authentication for this process and its children.

    Takes effect when Ray is imported, or by `process.reread_settings`. Without a token and without
    RAY_ADDRESS, it creates a token that only this user can read.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if not os.environ.get("RAY_ADDRESS"):
        create_token()


def create_token() -> None:
    """Create a token that only this user can read, unless there is one or it is not used."""
    if os.environ.get("RAY_AUTH_MODE") != "token" or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    if cluster_token() is None:
        path = token_path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            create_file(path, secrets.token_hex(32).encode(), 0o600)
