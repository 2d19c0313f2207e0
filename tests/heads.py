"""Heads of their own for tests of the command line."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from raysys import cluster

BIN = Path(sys.executable).parent


@contextmanager
def place_for_a_head(storage: Path, **variables: str) -> Iterator[dict[str, str]]:
    """Environment of commands that find no head but their own, which is stopped at the end."""
    # Sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as ray:
        own = {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": ray, "RAYSYS_STORAGE": str(storage)}
        env = {**os.environ, **own, **variables}
        env.pop("RAY_ADDRESS", None)
        try:
            yield env
        finally:
            subprocess.run([BIN / "raysys", "down"], env=env, check=True)


def head_of(env: Mapping[str, str]) -> cluster.Head | None:
    """The head that commands with an environment find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", env["RAY_TMPDIR"])
        return cluster.local_head()
