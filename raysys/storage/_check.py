"""Trial of a storage root in bounded time: `python -m raysys.storage._check ROOT`."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from raysys.secrets import shown

if TYPE_CHECKING:
    from raysys.storage._storage import Storage


def problem(storage: Storage, *, writable: bool, timeout_s: float) -> str:
    """Why a storage root cannot be used; empty if it can.

    A remote root is tried in a process of its own: a client that waits for an answer can neither
    be interrupted nor left behind until it gives up, minutes later.
    """
    if storage.is_local:
        return _trial(storage, writable)
    command = [sys.executable, "-P", "-m", __name__, storage.root, *(["writable"] * writable)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:g} s"
    return (done.stdout or done.stderr).strip() if done.returncode else ""


def _trial(storage: Storage, writable: bool) -> str:
    """Write, read and remove a small file, or only look for one."""
    root = Path(storage.root)
    if storage.is_local:
        existing = next(path for path in (root, *root.parents) if path.exists())
        if not existing.is_dir():
            return "it is a file" if existing == root else f"{existing} is a file"
    path = f".check-{uuid.uuid4().hex}"
    try:
        if not writable:
            storage.exists(path)
            return ""
        storage.write_bytes(path, b"check")
        content = storage.read_bytes(path)
        storage.remove(path)
    except Exception as error:  # pyarrow raises many kinds
        return shown(getattr(error, "strerror", None) or f"{type(error).__name__}: {error}")
    return "" if content == b"check" else "a file read back differs from the file written"


if __name__ == "__main__":
    from raysys.storage import Storage

    reason = _trial(Storage(sys.argv[1]), "writable" in sys.argv[2:])
    sys.stdout.write(reason)
    sys.exit(bool(reason))
