"""A user's Ray head on this machine, started and stopped by its process id."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from raysys import audit
from raysys.cluster._certificates import make_certificates
from raysys.cluster._token_auth import create_token
from raysys.errors import ResourceError
from raysys.ray_internals import local_processes
from raysys.storage import Storage

# Two training workers, one serving replica and the headroom fit on a laptop with two cores.
_MIN_LOGICAL_CPUS = 5
_START_TIMEOUT_S = 90.0
# A node that shuts down waits 30 s for other nodes to take over its replicas: there are none.
_NO_DRAIN = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
# Ray's sockets lie 64 characters below a head's folder, and Linux allows 107 in all.
_MAX_FOLDER_CHARACTERS = 43
_LOG = "head.log"


@dataclass(frozen=True)
class Head:
    """A Ray head on this machine.

    Attributes:
        address: Address of its GCS.
        folder: Its own folder for sessions, logs and sockets, so that heads do not mix.
        tls: Environment variables for processes that connect to `address`; jobs need none.
    """

    pid: int
    address: str
    dashboard_url: str
    folder: str = ""
    tls: dict[str, str] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        """Whether the process runs and is a Ray head, not another one with a reused id."""
        return _is_head(local_processes.arguments(self.pid))


def logical_cpus() -> int:
    """Logical CPUs of a local cluster: the machine's cores, but enough for a complete job.

    Logical CPUs are the scheduler's unit; the operating system shares the cores.
    """
    return max(os.cpu_count() or 1, _MIN_LOGICAL_CPUS)


def local_head() -> Head | None:
    """This user's head on this machine, started by `start_local`, if it runs.

    It is one for all storage roots and folders, and is read from the machine's processes.
    """
    place = f"{_folder_of_heads()}{os.sep}"
    for pid, command in local_processes.commands():
        folder = local_processes.option(command, "temp-dir")
        if _is_head(command) and folder.startswith(place):
            port, dashboard = (
                local_processes.option(command, name) for name in ("port", "dashboard-port")
            )
            return Head(pid, f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", folder,
                        _tls(pid))  # fmt: skip
    return None


def start_local(storage: Storage, *, cpus: int | None = None, tls: bool = False) -> Head:
    """Start a Ray head with its dashboard, or return the running one.

    Args:
        storage: Storage root of the audit log; it is checked before anything starts.
        cpus: Logical CPUs; see `logical_cpus` for the default.
        tls: Encrypt the traffic between its processes and clients, with new certificates. The
            dashboard still uses HTTP.

    Raises:
        StorageError: The storage root does not answer, or is not writable.
        ResourceError: The head did not start, or one without TLS is already running.
    """
    storage.check()
    create_token()
    with _starting():
        if not (head := local_head()):
            return _start(storage, cpus or logical_cpus(), tls)
    if tls and not head.tls:
        raise ResourceError(
            f"the head at {head.address} runs without TLS: `raysys down`, then `raysys up --tls`"
        )
    return head


def stop_local(storage: Storage) -> Head | None:
    """Stop the head started by `start_local`, with everything that runs on it.

    Args:
        storage: Storage root of the audit log; any, the head is not bound to one.

    Returns:
        The head that was running; None if none was.
    """
    head = local_head()
    if head is not None:
        audit.record(storage, "down", head.address)
        _stop(head)
    return head


def _start(storage: Storage, cpus: int, tls: bool) -> Head:
    port, dashboard_port = _free_port(6379), _free_port(8265)
    audit.record(storage, "up", f"127.0.0.1:{port}", cpus=cpus, tls=tls)
    # It replaces the folder of the last head on that port.
    folder = _folder_of_heads() / str(port)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    encryption = make_certificates(folder / "tls", []) if tls else {}
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
        f"--port={port}", f"--num-cpus={cpus}", f"--temp-dir={folder}",
        "--node-ip-address=127.0.0.1", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}", "--disable-usage-stats",
        # Any free port: with Ray's fixed one in use by another head, it has no logs and no jobs.
        "--dashboard-agent-listen-port=0", f"--ray-client-server-port={_free_port(10001)}",
    ]  # fmt: skip
    # A job's `python` is that of this environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**os.environ, **encryption, **_NO_DRAIN, "PATH": path}
    env.pop("RAY_ADDRESS", None)  # another cluster's
    with (folder / _LOG).open("wb") as output:
        # A new session: Ctrl-C in the terminal ends the submitting command, not the cluster.
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=env
        )
    url = f"http://127.0.0.1:{dashboard_port}"
    head = Head(process.pid, f"127.0.0.1:{port}", url, str(folder), encryption)
    try:
        _wait(head, process)
    except BaseException:  # Ctrl-C too
        _stop(head)
        raise
    return head


def _wait(head: Head, process: subprocess.Popen[bytes]) -> None:
    """Wait until a head's dashboard answers."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not _answers(head.dashboard_url):
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            log = Path(head.folder, _LOG)
            lines = log.read_text(errors="replace").split("\n") if log.exists() else []
            last = next((line.strip() for line in reversed(lines) if line.strip()), "empty")
            reason = "ended" if ended else f"does not answer after {_START_TIMEOUT_S:g} s"
            raise ResourceError(
                f"the Ray head at {head.address} {reason}: {last}. The log is {log}"
            )
        time.sleep(0.2)


def _stop(head: Head) -> None:
    deadline = time.monotonic() + 20
    with contextlib.suppress(ProcessLookupError):
        os.kill(head.pid, signal.SIGTERM)
        while head.is_alive and time.monotonic() < deadline:
            time.sleep(0.1)
        if head.is_alive:
            os.killpg(head.pid, signal.SIGKILL)


def _is_head(command: list[str]) -> bool:
    return {"start", "--head", "--block"} <= set(command)


def _folder_of_heads() -> Path:
    base = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return Path(base).absolute() / f"raysys-{os.getuid()}"


@contextmanager
def _starting() -> Iterator[None]:
    """Let one process of this user start a head at a time; makes the folder of heads."""
    folder = _folder_of_heads()
    characters = len(str(folder)) + len("/65535")
    if characters > _MAX_FOLDER_CHARACTERS:
        raise ResourceError(
            f"{folder} is too long for Ray's sockets, {characters} characters with a port of at "
            f"most {_MAX_FOLDER_CHARACTERS}: set RAY_TMPDIR to a shorter folder, such as /tmp"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.lstat().st_uid != os.getuid():
            raise PermissionError("another user owns it")
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise ResourceError(
            f"no folder for Ray at {folder} ({error}): set RAY_TMPDIR to a writable folder"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _tls(pid: int) -> dict[str, str]:
    """The variables for TLS in the environment of a process of this user."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in text.split("\0"))
    tls = ("RAY_USE_TLS", "RAY_TLS_")
    return {name: value for name, _, value in pairs if name.startswith(tls)}


def _answers(dashboard_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{dashboard_url}/api/version", timeout=2) as reply:
            return reply.status == 200
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # up, and requires the token
    except OSError:
        return False


def _free_port(preferred: int) -> int:
    """`preferred` if it is free on all interfaces, else a port chosen by the system."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ResourceError("no free TCP port on this machine")
