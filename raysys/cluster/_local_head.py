"""An embedded Ray head on this machine, started and stopped by its own process id."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict, dataclass, field
from pathlib import Path

from raysys import audit
from raysys.cluster._connection import logical_cpus
from raysys.errors import ResourceError
from raysys.secrets import cluster_token, token_path
from raysys.storage import DEFAULT_ROOT, Storage

_STATE = "cluster/local.json"
_START_TIMEOUT_S = 90.0
# A node that is told to end waits half a minute for others to take its replicas: there are none.
_NO_DRAIN = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}


@dataclass(frozen=True)
class Head:
    """A Ray head on this machine.

    Attributes:
        pid: Process id.
        address: Address of its GCS.
        dashboard_url: URL of its dashboard.
        tls: Environment variables for processes that connect to `address`; jobs need none.
    """

    pid: int
    address: str
    dashboard_url: str
    tls: dict[str, str] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        """Whether the process is there and is ours, not another that reuses its number."""
        try:
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return False
        return b"ray" in command and b"--block" in command


def enable_token_auth() -> None:
    """Turn Ray's token authentication on for this process and its children.

    Must run before `ray` is imported. Without a token anywhere, and without the address of a
    cluster that has one, it makes one that only this user can read.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] != "token" or os.environ.get("RAY_ADDRESS"):
        return
    if cluster_token() is None and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        path = token_path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))


def start_local(storage: Storage, *, cpus: int | None = None, tls: bool = False) -> Head:
    """Start a Ray head with its dashboard, or return the one started before.

    Args:
        storage: Storage root that remembers the head's process id.
        cpus: Logical CPUs; see `logical_cpus` for the default.
        tls: Encrypt what its processes and clients say to each other, with new certificates.
            The dashboard speaks HTTP all the same.

    Raises:
        ResourceError: The head did not come up, or one without TLS runs already.
    """
    storage = _on_this_machine(storage)
    head = remembered(storage)
    if head:
        if tls and not head.tls:
            raise ResourceError(
                f"the head at {head.address} runs without TLS: `raysys down`, then "
                "`raysys up --tls`"
            )
        return head
    port, dashboard_port = _free_port(6379), _free_port(8265)
    logical = cpus or logical_cpus()
    log = Path(storage.uri("cluster/head.log"))
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        _ray_command(), "start", "--head", "--block", f"--port={port}", f"--num-cpus={logical}",
        "--node-ip-address=127.0.0.1", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}", "--disable-usage-stats",
        # Taken by any other head on this machine, Ray's fixed port would leave no agent.
        f"--dashboard-agent-listen-port={_free_port(52365)}",
    ]  # fmt: skip
    audit.record(storage, "up", f"127.0.0.1:{port}", cpus=logical, tls=tls)
    encryption = _new_certificates(Path(storage.uri("cluster/tls"))) if tls else {}
    # A job's `python` is the one of this environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with log.open("wb") as output:
        # Its own session: Ctrl-C in the terminal ends the submitting command, not the cluster.
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **encryption, **_NO_DRAIN, "PATH": path},
        )
    head = Head(process.pid, f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}", encryption)
    storage.write_json(_STATE, asdict(head))
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not _answers(head.dashboard_url):
        if process.poll() is not None or time.monotonic() > deadline:
            stop_local(storage)
            raise ResourceError(
                f"the local Ray head did not come up within {_START_TIMEOUT_S:g} s: read {log}"
            )
        time.sleep(0.2)
    return head


def stop_local(storage: Storage) -> bool:
    """Stop the head that `start_local` started, with all that runs on it.

    Returns:
        Whether there was one to stop.
    """
    storage = _on_this_machine(storage)
    head = remembered(storage)
    if head is None:
        Path(storage.uri(_STATE)).unlink(missing_ok=True)
        return False
    audit.record(storage, "down", head.address)
    Path(storage.uri(_STATE)).unlink(missing_ok=True)
    os.kill(head.pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while head.is_alive and time.monotonic() < deadline:
        time.sleep(0.1)
    if head.is_alive:
        os.killpg(head.pid, signal.SIGKILL)
    # Only `ray stop` removes Ray's own note of the last cluster; left, the next `ray.init` of
    # anyone on this machine waits for a cluster that is gone.
    note = Path("/tmp/ray/ray_current_cluster")
    port = head.address.rpartition(":")[2]
    if note.exists() and note.read_text().strip().endswith(f":{port}"):
        note.unlink()
    return True


def _new_certificates(folder: Path) -> dict[str, str]:
    """In place of those of the head before, which has ended."""
    from raysys.cluster._certificates import make_certificates

    shutil.rmtree(folder, ignore_errors=True)
    return make_certificates(folder, [])


def _on_this_machine(storage: Storage) -> Storage:
    """Where a head is remembered: a process is of this machine, if the artefacts are not."""
    return storage if storage.is_local else Storage(DEFAULT_ROOT)


def remembered(storage: Storage) -> Head | None:
    """The head that `start_local` started, if it runs."""
    storage = _on_this_machine(storage)
    path = Path(storage.uri(_STATE))
    if not path.exists():
        return None
    head = Head(**json.loads(path.read_text()))
    return head if head.is_alive else None


def _ray_command() -> str:
    return str(Path(sys.executable).parent / "ray")


def _answers(dashboard_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{dashboard_url}/api/version", timeout=2) as reply:
            return reply.status == 200
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # up, and asking for the token
    except OSError:
        return False


def _free_port(preferred: int) -> int:
    """`preferred` if nothing listens there, else one that the system picks."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ResourceError("no free TCP port on 127.0.0.1")
