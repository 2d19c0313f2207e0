"""API keys: made once, kept as hashes under the storage root, read by the gateway."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import secrets
from typing import TYPE_CHECKING

from raysys.errors import RaysysError
from raysys.serve._haproxy_config import Key

if TYPE_CHECKING:
    from raysys.storage import Storage

_PATH = "serve/keys.json"


def create_key(
    storage: Storage, name: str, *, rate_per_s: int = 100, max_body_bytes: int = 1 << 20
) -> str:
    """Make an API key for protected applications.

    A running gateway knows it within seconds. The key has 256 random bits, so its SHA-256 needs
    no salt.

    Args:
        storage: Where its hash and limits are kept; that of the deployed applications.
        name: Whose it is.
        rate_per_s: Requests a second at most; 429 beyond.
        max_body_bytes: Of a request; 413 beyond.

    Returns:
        The key. It is shown this once.

    Raises:
        RaysysError: The name is taken or is no name.
    """
    keys = {key.name: key for key in read_keys(storage)}
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise RaysysError(f"key name {name!r}: use up to 64 letters, digits, _, . and -")
    if name in keys:
        raise RaysysError(f"there is a key {name!r} already: revoke it first, or name another")
    secret = f"rs_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    _write(storage, [*keys.values(), Key(name, digest, rate_per_s, max_body_bytes)])
    return secret


def revoke_key(storage: Storage, name: str) -> None:
    """Let a key in no more.

    Raises:
        RaysysError: There is none of that name.
    """
    keys = read_keys(storage)
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        raise RaysysError(f"no key {name!r}; keys are {[key.name for key in keys]}")
    _write(storage, left)


def read_keys(storage: Storage) -> list[Key]:
    """All keys: names, hashes and limits."""
    kept = storage.read_bytes(_PATH)
    return [Key(**key) for key in json.loads(kept)] if kept else []


def _write(storage: Storage, keys: list[Key]) -> None:
    storage.write_json(_PATH, [dataclasses.asdict(key) for key in keys])
