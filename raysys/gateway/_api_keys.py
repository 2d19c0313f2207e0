"""API keys, stored as hashes under the storage root and read by the gateway."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from raysys import audit
from raysys.arguments import checked
from raysys.errors import RaysysError, unknown_names
from raysys.gateway._haproxy_config import ApiKey, Scope
from raysys.storage import read_records

if TYPE_CHECKING:
    from raysys.storage import Storage

# A file per key, created exclusively: concurrent changes of other keys are not lost.
_FOLDER = "serve/keys"


@checked
def create_key(
    storage: Storage, name: str, *,
    rate_per_s: int = 100, max_body_bytes: int = 1 << 20, expires_s: float | None = None,
    scope: Scope = "serve", applications: Sequence[str] = (),
) -> str:  # fmt: skip
    """Create an API key for protected applications.

    A running gateway accepts it within seconds. The key has 256 random bits, so its SHA-256 needs
    no salt. It grants access to applications only: the dashboard and Ray require the cluster's
    token, which in turn grants no access to applications.

    Args:
        storage: Storage of its hash and limits; the one of the deployed applications.
        name: Up to 64 letters, digits, `_`, `.` and `-`; not `.` first.
        rate_per_s: Maximum number of requests per second; 429 beyond.
        max_body_bytes: Maximum size of a request body; 413 beyond.
        expires_s: Seconds until it expires; None for never.
        scope: `serve` to send requests to applications and to read their descriptions and
            statistics; `read` for the latter alone; 403 beyond.
        applications: Names of the applications that it is for, all by default; 403 for others, and
            for lists of all models.

    Returns:
        The key, which is not stored and cannot be shown again.

    Raises:
        RaysysError: The name exists, it or an application's is invalid, the expiry is in the past,
            the scope is unknown, or the audit log cannot be written.
    """
    if scope not in get_args(Scope):
        scopes = ", ".join(get_args(Scope))
        raise RaysysError(
            f"unknown scope {unknown_names([scope], get_args(Scope))}; scopes: {scopes}"
        )
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}", name):
        raise RaysysError(
            f"key name {name!r}: use up to 64 letters, digits, _, . and -, no . first"
        )
    if name in _names(storage):
        raise _exists(name)
    if expires_s is not None and expires_s < 1:
        raise RaysysError(f"key {name!r} would expire in {expires_s:g} s: give one second or more")
    if wrong := [app for app in applications if not re.fullmatch(r"[A-Za-z0-9_-]+", app)]:
        raise RaysysError(f"application names {wrong}: use letters, digits, _ and -")
    expires = None if expires_s is None else int(time.time() + expires_s)
    secret = f"rs_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    granted = {"scope": scope, "applications": tuple(applications)}
    audit.record(storage, "key.add", name, rate_per_s=rate_per_s, expires=expires, **granted)
    key = ApiKey(name, digest, rate_per_s, max_body_bytes, expires, scope, tuple(applications))
    try:
        storage.create(_path(name), json.dumps(dataclasses.asdict(key)).encode())
    except FileExistsError:
        raise _exists(name) from None
    return secret


def revoke_key(storage: Storage, name: str) -> None:
    """Revoke an API key; a running gateway refuses it within seconds.

    Raises:
        RaysysError: Unknown key, or the audit log cannot be written.
    """
    names = _names(storage)
    if name not in names:
        raise RaysysError(f"unknown key {name!r}; keys are {names}")
    audit.record(storage, "key.revoke", name)
    storage.remove(_path(name))


def read_keys(storage: Storage) -> list[ApiKey]:
    """All keys by name, including expired ones: names, hashes and limits.

    A key whose file is damaged is left out, and so refused.
    """
    paths = [_path(name) for name in _names(storage)]
    return read_records(storage, paths, _from_json)


def _from_json(fields: dict[str, Any]) -> ApiKey:
    return ApiKey(**{**fields, "applications": tuple(fields["applications"])})


def _names(storage: Storage) -> list[str]:
    return [name.removesuffix(".json") for name in storage.names(_FOLDER)]


def _path(name: str) -> str:
    return f"{_FOLDER}/{name}.json"


def _exists(name: str) -> RaysysError:
    return RaysysError(f"key {name!r} exists: revoke it first, or choose another name")
