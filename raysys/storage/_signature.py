"""Signatures of what is unpickled: reading a pickle runs code, so it must be the cluster's own.

HMAC-SHA-256 (RFC 2104) with a key from the cluster's token. Who can write to the root but does not
have the token can plant nothing that is run.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from raysys.errors import StorageError
from raysys.secrets import cluster_token

_SIZE = hashlib.sha256().digest_size
_KEY = "RAYSYS_SIGNING_KEY"


def sign(data: bytes) -> bytes:
    """The data after its signature."""
    return _signature(data) + data


def content(signed: bytes, where: str) -> bytes:
    """The data of `sign`.

    Raises:
        StorageError: It is damaged, or was signed with another key.
    """
    data = signed[_SIZE:]
    if not hmac.compare_digest(signed[:_SIZE], _signature(data)):
        raise StorageError(
            f"{where} is damaged, or was not written by this cluster, and reading it would run "
            f"code: make it again, or set {_KEY} to the key (or the token) of its cluster"
        )
    return data


def _signature(data: bytes) -> bytes:
    key = os.environ.get(_KEY) or cluster_token() or ""
    return hmac.digest(b"raysys storage " + key.encode(), data, "sha256")
