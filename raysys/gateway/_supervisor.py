"""Holds a gateway's port and keeps HAProxy running on it, whatever becomes of the gateway.

Run as a script, `python -I _supervisor.py FOLDER HOST PORT BINARY`, by nothing but the standard
library, so that it starts at once and is small. The listening socket is this process's: while
HAProxy starts again connections wait in it instead of being refused, and a gateway that dies
takes nothing along. It ends at SIGTERM, or when the process that `FOLDER/watched` names has been
away for as many seconds as stand behind it, unless that file names another by then.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

LISTEN_FD = 9
_LOOK_S, _PAUSE_S = 0.5, 0.2
_BACKLOG = 2048


def main() -> None:
    """Bind, leave the caller, keep HAProxy running."""
    folder, host, port, binary = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    try:
        bound = socket.create_server((host, port), backlog=_BACKLOG)
    except OSError as error:
        sys.exit(str(error))
    os.dup2(bound.fileno(), LISTEN_FD, inheritable=True)
    if os.fork():  # Ray ends the children of a worker that it ends
        os._exit(0)
    os.setsid()
    with (folder / "haproxy.log").open("ab") as log:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    _write(folder / "supervisor.pid", str(os.getpid()))
    _Supervisor(folder, [binary, "-W", "-f", str(folder / "haproxy.cfg")]).run()


class _Supervisor:
    def __init__(self, folder: Path, command: list[str]) -> None:
        self._folder, self._command = folder, command
        self._told_to_end = False
        self._away_since: float | None = None
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, *_: object) -> None:
        self._told_to_end = True

    def run(self) -> None:
        starts, group = 0, 0
        while not self._is_over():
            began = time.monotonic()
            # Its own group: workers of a master that was killed go on, and are told to end.
            process = subprocess.Popen(self._command, pass_fds=(LISTEN_FD,), start_new_session=True)
            starts += 1
            _write(self._folder / "haproxy.pid", f"{process.pid} {starts}")
            if group:
                _signal(group, signal.SIGUSR1)
            group = process.pid
            while process.poll() is None and not self._is_over():
                _wait(process.pid)
            if process.poll() is None:
                process.terminate()
                process.wait()
            if time.monotonic() - began < 1:
                time.sleep(_PAUSE_S)
        _signal(group, signal.SIGTERM)

    def _is_over(self) -> bool:
        """Whether nobody wants HAProxy any more."""
        if self._told_to_end:
            return True
        try:
            pid, _, patience_s = (self._folder / "watched").read_text().partition(" ")
        except OSError:  # the folder has been removed
            return True
        if _is_alive(int(pid)):
            self._away_since = None
            return False
        self._away_since = self._away_since or time.monotonic()
        return time.monotonic() - self._away_since >= float(patience_s)


def _wait(pid: int) -> None:
    """Until a child ends, or a moment has passed."""
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
    try:
        os.killpg(group, number)
    except OSError:
        return


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    beside = file.with_suffix(".new")
    beside.write_text(text)
    beside.replace(file)


if __name__ == "__main__":
    main()
