"""Supervisor of HAProxy: owns the listening socket and restarts HAProxy, outliving the gateway.

A script, `python -I _supervisor.py FOLDER HOST PORT BINARY`, of the standard library alone, so that
it starts fast and stays small. While HAProxy restarts, connections wait in the socket's backlog
instead of being refused. A standby, forked from it, holds the socket too: if the supervisor is
killed, the standby supervises the HAProxy that runs. It exits at SIGTERM, or when the process in
`FOLDER/watched` (a pid and a grace period in seconds) has been gone for the grace period, unless
that file has a new pid by then.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

LISTEN_FD = 9
_LOOK_S, _QUICK_S, _PAUSE_S = 0.5, 1.0, 0.2
_BACKLOG = 2048


def main() -> None:
    """Bind, daemonize, keep HAProxy running."""
    folder, host, port, binary = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    try:
        bound = socket.create_server((host, port), backlog=_BACKLOG)
    except OSError as error:
        sys.exit(str(error))
    os.dup2(bound.fileno(), LISTEN_FD, inheritable=True)
    if os.fork():  # Ray kills the children of a worker that it kills
        os._exit(0)
    os.setsid()
    with (folder / "haproxy.log").open("ab") as log:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    _Supervisor(folder, [binary, "-W", "-f", str(folder / "haproxy.cfg")]).run()


class _Supervisor:
    def __init__(self, folder: Path, command: list[str]) -> None:
        self._folder, self._command = folder, command
        self._master = self._starts = self._standby = 0
        self._began = -_QUICK_S
        self._stopping = False
        self._gone_since: float | None = None
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def run(self) -> None:
        write(self._folder / "supervisor.pid", str(os.getpid()))
        while not self._is_over():
            _reap()
            if not _is_alive(self._standby):
                self._fork_standby()
            if not _is_alive(self._master):
                self._start()
            _wait(self._master)
        if self._standby:
            os.kill(self._standby, signal.SIGKILL)
            os.waitpid(self._standby, 0)
        if self._master:
            _signal(self._master, signal.SIGTERM)
        while _is_alive(self._master):
            _wait(self._master)

    def _start(self) -> None:
        """Start HAProxy; the workers of a killed master finish their connections."""
        if time.monotonic() - self._began < _QUICK_S:
            time.sleep(_PAUSE_S)
        self._began, group = time.monotonic(), self._master
        # A process group: the workers of a killed master survive it, and are signalled.
        self._master = os.posix_spawn(self._command[0], self._command, os.environ, setsid=True)
        self._starts += 1
        write(self._folder / "haproxy.pid", f"{self._master} {self._starts}")
        if group:
            _signal(group, signal.SIGUSR1)

    def _fork_standby(self) -> None:
        """Fork a process that waits for the end of this one, and then takes its place."""
        supervisor = os.getpid()
        self._standby = os.fork()
        if self._standby:
            return
        os.setsid()
        with contextlib.suppress(OSError):  # even on a full disk
            write(self._folder / "standby.pid", str(os.getpid()))
        while os.getppid() == supervisor:
            _wait(supervisor)
        with contextlib.suppress(OSError, ValueError):
            started = (self._folder / "haproxy.pid").read_text()
            self._master, self._starts = map(int, started.split())
        write(self._folder / "supervisor.pid", str(os.getpid()))

    def _is_over(self) -> bool:
        """Whether HAProxy is not needed any more."""
        if self._stopping:
            return True
        try:
            pid, _, grace_s = (self._folder / "watched").read_text().partition(" ")
        except OSError:  # the folder has been removed
            return True
        if _is_alive(int(pid)):
            self._gone_since = None
            return False
        self._gone_since = self._gone_since or time.monotonic()
        return time.monotonic() - self._gone_since >= float(grace_s)


def _reap() -> None:
    """Collect children that have exited."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _wait(pid: int) -> None:
    """Wait for a process to exit, with a timeout."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        select.select([handle], [], [], _LOOK_S)
    finally:
        os.close(handle)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(group, number)


def write(file: Path, text: str) -> None:
    """Write a file atomically."""
    temporary = file.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(file)


if __name__ == "__main__":
    main()
