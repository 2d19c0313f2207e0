"""API keys, stored as hashes under the storage root and read by the gateway."""

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
    storage: Storage, name: str, *,
    rate_per_s: int = 100, max_body_bytes: int = 1 << 20, expires_s: float | None = None,
) -> str:  # fmt: skip
    """Create an API key for protected applications.

    A running gateway accepts it within seconds. The key has 256 random bits, so its SHA-256 needs
    no salt. It grants access to applications only: the dashboard and Ray require the cluster's
    token, which in turn grants no access to applications.

    Args:
        storage: Storage of its hash and limits; the one of the deployed applications.
        name: Up to 64 letters, digits, `_`, `.` and `-`.
        rate_per_s: Maximum number of requests per second; 429 beyond.
        max_body_bytes: Maximum size of a request body; 413 beyond.
        expires_s: Seconds until it expires; None for never.

    Returns:
        The key, which is not stored and cannot be shown again.

    Raises:
        RaysysError: The name exists or is invalid, the expiry is in the past, or the audit log
            cannot be written.
    """
    keys = {key.name: key for key in read_keys(storage)}
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise RaysysError(f"key name {name!r}: use up to 64 letters, digits, _, . and -")
    if name in keys:
        raise RaysysError(f"key {name!r} exists: revoke it first, or choose another name")
    if expires_s is not None and expires_s < 1:
        raise RaysysError(f"key {name!r} would expire in {expires_s:g} s: give one second or more")
    expires = None if expires_s is None else int(time.time() + expires_s)
    secret = f"rs_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    audit.record(storage, "key.add", name, rate_per_s=rate_per_s, expires=expires)
    _write(storage, [*keys.values(), ApiKey(name, digest, rate_per_s, max_body_bytes, expires)])
    return secret


def revoke_key(storage: Storage, name: str) -> None:
    """Revoke an API key; a running gateway refuses it within seconds.

    Raises:
        RaysysError: Unknown key, or the audit log cannot be written.
    """
    keys = read_keys(storage)
    remaining = [key for key in keys if key.name != name]
    if len(remaining) == len(keys):
        raise RaysysError(f"unknown key {name!r}; keys are {[key.name for key in keys]}")
    audit.record(storage, "key.revoke", name)
    _write(storage, remaining)


def read_keys(storage: Storage) -> list[ApiKey]:
    """All keys, including expired ones: names, hashes and limits."""
    data = storage.read_bytes(_PATH)
    return [ApiKey(**key) for key in json.loads(data)] if data else []


def _write(storage: Storage, keys: list[ApiKey]) -> None:
    storage.write_json(_PATH, [dataclasses.asdict(key) for key in keys])
