"""Facts of the machine that runs this module: `python -m raysys.cluster._machine_facts`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from raysys.console import say
from raysys.errors import RaysysError, StorageError
from raysys.secrets import shown
from raysys.storage import Storage


@dataclass(frozen=True)
class Facts:
    """Facts of a machine that `doctor` checks; on a cluster, of its head.

    Attributes:
        versions: Versions of python, ray and raysys.
        shm_bytes: Size of /dev/shm, where the object store lies.
        disk_used: Share of the disk under Ray's folder.
        gpus_driver: Seen by nvidia-smi; None without it.
        gpus_torch: Usable by torch; None without torch or nvidia-smi.
        storage_error: Reason why the root is not writable; empty if it is.
        mlflow: The tracking server, without its password; empty if not set.
        mlflow_error: Reason why the server does not answer; empty if it does.
    """

    versions: dict[str, str]
    shm_bytes: int
    memory_bytes: int
    disk_used: float
    gpus_driver: int | None
    gpus_torch: int | None
    storage: str
    storage_error: str
    mlflow: str
    mlflow_error: str


def collect() -> Facts:
    """Collect the facts of this machine; writes and removes a small file under the storage root."""
    storage, storage_error = _storage()
    driver = _gpus_driver()
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    disk = shutil.disk_usage(folder / "ray" if (folder / "ray").exists() else folder)
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    return Facts(
        versions=versions(),
        shm_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").exists() else 0,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        disk_used=1 - disk.free / disk.total,
        gpus_driver=driver,
        gpus_torch=_gpus_torch() if driver else None,
        storage=storage,
        storage_error=storage_error,
        mlflow=shown(server),
        mlflow_error=_mlflow_error(server),
    )


def versions() -> dict[str, str]:
    """Versions of Python, Ray and raysys."""
    packages = {name: importlib.metadata.version(name) for name in ("ray", "raysys")}
    return {"python": platform.python_version(), **packages}


def _storage() -> tuple[str, str]:
    """The storage root, and the reason why it is not writable; empty if it is."""
    try:
        storage = Storage()
    except RaysysError as error:
        return os.environ.get("RAYSYS_STORAGE", ""), str(error)
    try:
        storage.check()
    except StorageError as error:
        return storage.root, str(error)
    return storage.root, ""


def _gpus_driver() -> int | None:
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    listing = subprocess.run([command, "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def _gpus_torch() -> int | None:
    """GPUs that torch can use; the import of torch takes seconds."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    return torch.cuda.device_count()


def _mlflow_error(uri: str) -> str:
    if not uri.startswith(("http://", "https://")):
        return ""
    import requests  # supports a user and a password in a URI

    try:
        status = requests.get(f"{uri.rstrip('/')}/health", timeout=10).status_code
    except (OSError, ValueError) as error:
        return shown(str(error))
    return f"status {status}" if status >= 500 else ""


if __name__ == "__main__":
    say(json.dumps(asdict(collect())))
