"""Secrets: given by the environment or a file, and shown nowhere.

A setting of the type `Secret` is given as `env:NAME` or `file:PATH`, so that the secret itself is
in no command line, no YAML and no shell history; in records, logs and `repr` it is `**********`.
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
    """A text, such as a URI or an error's message, without the passwords of the URIs in it.

    Example:
        >>> shown("no answer from postgresql://ray:hunter2@host/mlflow")
        'no answer from postgresql://ray:***@host/mlflow'
    """
    return _NAMED.sub(r"\g<before>***", _PASSWORD.sub(r"\g<before>:***@", text))


def holds_secret(name: str, value: str) -> bool:
    """Whether an environment variable is a secret, by its name or by a password in its URI."""
    return _SECRET_NAME.search(name) is not None or shown(value) != value


def cluster_token() -> str | None:
    """The token that opens a Ray cluster, from where Ray takes it; None without one.

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


def _read(given: Any) -> Any:
    """The secret that `env:NAME` or `file:PATH` names."""
    if isinstance(given, SecretStr):
        return given
    kind, _, where = str(given).partition(":")
    if kind == "env" and where:
        if value := os.environ.get(where):
            return value
        raise PydanticCustomError(
            "secret", "the environment has no {name}: set it on the head, where jobs start",
            {"name": where},
        )  # fmt: skip
    if kind == "file" and where:
        try:
            value = Path(where).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise PydanticCustomError(
                "secret", "cannot read {file}: {why}", {"file": where, "why": why}
            ) from None
        if value:
            return value
        raise PydanticCustomError("secret", "{file} is empty", {"file": where})
    raise PydanticCustomError(
        "secret", "give env:NAME or file:PATH, not the secret itself: others see a command line"
    )


Secret = Annotated[SecretStr, BeforeValidator(_read)]
"""A job setting that is read from the environment or a file.

Example:
    class Config(BaseModel):
        api_key: Secret = SecretStr("")  # --api-key env:FEED_KEY; config.api_key.get_secret_value()
"""
