"""Secrets from the environment or a file, masked everywhere.

A setting of the type `Secret` is passed as `env:NAME` or `file:PATH`, so that the secret itself
never appears in a command line, YAML or shell history; records, logs and `repr` show `**********`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, SecretStr
from pydantic_core import PydanticCustomError

__all__ = ["Secret", "cluster_token", "holds_secret", "shown", "token_path"]

# The user's part may be empty (redis://:password@host). The password ends at the last @ before
# the path, as in urllib: one that was not percent-encoded may hold another.
_PASSWORD = re.compile(r"(?P<before>[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@?#]*):[^\s/?#]+@")
_NAMED = re.compile(
    r"(?P<before>[?&;](?:[\w.-]*[_.-])?"
    r"(?:password|passwd|pwd|secret|token|sig|signature|api_?key|secret_?key|access_?key)=)"
    r"[^&;#\s'\"]+",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(
    r"^(?!GOOGLE_APPLICATION_CREDENTIALS$|.*_(PATH|FILE|DIR)$)(.*_)?"
    r"(PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIALS?|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)(_|$)",
    re.IGNORECASE,
)


def shown(text: str) -> str:
    """Text, such as a URI or an error message, with the passwords of URIs masked.

    Example:
        >>> shown("no answer from postgresql://ray:hunter2@host/mlflow")
        'no answer from postgresql://ray:***@host/mlflow'
    """
    return _NAMED.sub(r"\g<before>***", _PASSWORD.sub(r"\g<before>:***@", text))


def holds_secret(name: str, value: str) -> bool:
    """Whether an environment variable is secret, by its name or by a password in its URI."""
    return _SECRET_NAME.search(name) is not None or shown(value) != value


def cluster_token() -> str | None:
    """The cluster's token, as Ray looks it up; None without one.

    RAY_AUTH_TOKEN, else the file that RAY_AUTH_TOKEN_PATH names, else `~/.ray/auth_token`.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    try:
        return token_path().read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def token_path() -> Path:
    """The file that holds the cluster's token where RAY_AUTH_TOKEN is not set."""
    default = Path.home() / ".ray" / "auth_token"
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or default).expanduser()


def _read(reference: Any) -> Any:
    """The secret that `env:NAME` or `file:PATH` names."""
    if isinstance(reference, SecretStr):
        return reference
    kind, _, where = str(reference).partition(":")
    if kind == "env" and where:
        if value := os.environ.get(where):
            return value
        raise PydanticCustomError(
            "secret", "environment variable {name} is not set: set it on the head node",
            {"name": where},
        )  # fmt: skip
    if kind == "file" and where:
        try:
            value = Path(where).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not a text file"
            raise PydanticCustomError(
                "secret", "cannot read {file}: {why}", {"file": where, "why": why}
            ) from None
        if value:
            return value
        raise PydanticCustomError("secret", "{file} is empty", {"file": where})
    raise PydanticCustomError("secret", "pass env:NAME or file:PATH, not the secret itself")


Secret = Annotated[SecretStr, BeforeValidator(_read)]
"""A job setting that is read from the environment or a file.

Example:
    class Config(BaseModel):
        api_key: Secret = SecretStr("")  # --api-key env:FEED_KEY; config.api_key.get_secret_value()
"""
