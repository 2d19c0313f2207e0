"""API keys: made once, kept as hashes under the storage root, read by the gateway."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import secrets
import time
from typing import TYPE_CHECKING

from raysys import audit
from raysys.errors import RaysysError
from raysys.gateway._haproxy_config import ApiKey

if TYPE_CHECKING:
    from raysys.storage import Storage

_PATH = "serve/keys.json"


def create_key(
    storage: Storage,
    name: str,
    *,
    rate_per_s: int = 100,
    max_body_bytes: int = 1 << 20,
    expires_s: float | None = None,
) -> str:
    """Make an API key for protected applications.

    A running gateway knows it within seconds. The key has 256 random bits, so its SHA-256 needs
    no salt. It opens applications and nothing else: the dashboard and Ray take the cluster's
    token, which opens no application.

    Args:
        storage: Where its hash and limits are kept; that of the deployed applications.
        name: Whose it is.
        rate_per_s: Requests a second at most; 429 beyond.
        max_body_bytes: Of a request; 413 beyond.
        expires_s: Seconds from now until it lets nobody in; None never ends.

    Returns:
        The key. It is shown this once.

    Raises:
        RaysysError: The name is taken or is no name, it would have expired already, or nobody
            could tell who made it: the audit line cannot be written.
    """
    keys = {key.name: key for key in read_keys(storage)}
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise RaysysError(f"key name {name!r}: use up to 64 letters, digits, _, . and -")
    if name in keys:
        raise RaysysError(f"there is a key {name!r} already: revoke it first, or name another")
    if expires_s is not None and expires_s < 1:
        raise RaysysError(f"key {name!r} would expire in {expires_s:g} s: give one second or more")
    expires = None if expires_s is None else int(time.time() + expires_s)
    secret = f"rs_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    audit.record(storage, "key.add", name, rate_per_s=rate_per_s, expires=expires)
    _write(storage, [*keys.values(), ApiKey(name, digest, rate_per_s, max_body_bytes, expires)])
    return secret


def revoke_key(storage: Storage, name: str) -> None:
    """Let a key in no more.

    Raises:
        RaysysError: There is none of that name, or the audit line cannot be written.
    """
    keys = read_keys(storage)
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        raise RaysysError(f"no key {name!r}; keys are {[key.name for key in keys]}")
    audit.record(storage, "key.revoke", name)
    _write(storage, left)


def read_keys(storage: Storage) -> list[ApiKey]:
    """All keys, expired ones too: names, hashes and limits."""
    kept = storage.read_bytes(_PATH)
    return [ApiKey(**key) for key in json.loads(kept)] if kept else []


def _write(storage: Storage, keys: list[ApiKey]) -> None:
    storage.write_json(_PATH, [dataclasses.asdict(key) for key in keys])
