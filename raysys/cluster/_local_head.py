"""A Ray head on this machine, started and stopped by its process id."""

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
from raysys.cluster._certificates import create_file, make_certificates
from raysys.cluster._connection import logical_cpus
from raysys.errors import ResourceError
from raysys.secrets import cluster_token, token_path
from raysys.storage import DEFAULT_ROOT, Storage

_STATE = "cluster/local.json"
_START_TIMEOUT_S = 90.0
# A node that shuts down waits 30 s for other nodes to take over its replicas: there are none.
_NO_DRAIN = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}


@dataclass(frozen=True)
class Head:
    """A Ray head on this machine.

    Attributes:
        address: Address of its GCS.
        tls: Environment variables for processes that connect to `address`; jobs need none.
    """

    pid: int
    address: str
    dashboard_url: str
    tls: dict[str, str] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        """Whether the process runs and is a Ray head, not another one with a reused id."""
        try:
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return False
        return b"ray" in command and b"--block" in command


def enable_token_auth() -> None:
    """Enable Ray's token authentication for this process and its children.

    Must run before `ray` is imported. Without a token and without RAY_ADDRESS, it creates a token
    that only this user can read.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] != "token" or os.environ.get("RAY_ADDRESS"):
        return
    if cluster_token() is None and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        path = token_path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            create_file(path, secrets.token_hex(32).encode(), 0o600)


def start_local(storage: Storage, *, cpus: int | None = None, tls: bool = False) -> Head:
    """Start a Ray head with its dashboard, or return the running one.

    Args:
        storage: Storage root; it stores the head's process id.
        cpus: Logical CPUs; see `logical_cpus` for the default.
        tls: Encrypt the traffic between its processes and clients, with new certificates. The
            dashboard still uses HTTP.

    Raises:
        ResourceError: The head did not start, or one without TLS is already running.
    """
    storage = _on_this_machine(storage)
    if head := remembered(storage):
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
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
        f"--port={port}", f"--num-cpus={logical}",
        "--node-ip-address=127.0.0.1", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}", "--disable-usage-stats",
        # With Ray's fixed port in use by another head, the agent would not start.
        f"--dashboard-agent-listen-port={_free_port(52365)}",
    ]  # fmt: skip
    audit.record(storage, "up", f"127.0.0.1:{port}", cpus=logical, tls=tls)
    encryption: dict[str, str] = {}
    if tls:
        folder = storage.uri("cluster/tls")
        shutil.rmtree(folder, ignore_errors=True)  # certificates of the previous head
        encryption = make_certificates(folder, [])
    # A job's `python` is that of this environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**os.environ, **encryption, **_NO_DRAIN, "PATH": path}
    with log.open("wb") as output:
        # A new session: Ctrl-C in the terminal ends the submitting command, not the cluster.
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=env
        )
    head = Head(process.pid, f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}", encryption)
    storage.write_json(_STATE, asdict(head))
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not _answers(head.dashboard_url):
        if process.poll() is not None or time.monotonic() > deadline:
            stop_local(storage)
            raise ResourceError(
                f"the local Ray head did not start within {_START_TIMEOUT_S:g} s: see {log}"
            )
        time.sleep(0.2)
    return head


def stop_local(storage: Storage) -> bool:
    """Stop the head started by `start_local`, with everything that runs on it.

    Returns:
        Whether a head was running.
    """
    storage = _on_this_machine(storage)
    head = remembered(storage)
    if head is not None:
        audit.record(storage, "down", head.address)
    storage.remove(_STATE)
    if head is None:
        return False
    os.kill(head.pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while head.is_alive and time.monotonic() < deadline:
        time.sleep(0.1)
    if head.is_alive:
        os.killpg(head.pid, signal.SIGKILL)
    # Only `ray stop` removes Ray's record of the last cluster; with a stale record, the next
    # `ray.init` on this machine waits for a cluster that no longer exists.
    record = Path("/tmp/ray/ray_current_cluster")
    port = head.address.rpartition(":")[2]
    if record.exists() and record.read_text().strip().endswith(f":{port}"):
        record.unlink()
    return True


def _on_this_machine(storage: Storage) -> Storage:
    """Local storage for the head's state, as its process is always local."""
    return storage if storage.is_local else Storage(DEFAULT_ROOT)


def remembered(storage: Storage) -> Head | None:
    """The head started by `start_local`, if it runs."""
    state = _on_this_machine(storage).read_bytes(_STATE)
    head = Head(**json.loads(state)) if state else None
    return head if head and head.is_alive else None


def _answers(dashboard_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{dashboard_url}/api/version", timeout=2) as reply:
            return reply.status == 200
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # up, and requires the token
    except OSError:
        return False


def _free_port(preferred: int) -> int:
    """`preferred` if it is free, else a port chosen by the system."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ResourceError("no free TCP port on 127.0.0.1")
