"""Several machines on one: each has its own network address, processes and folder of Ray.

A machine is a network namespace on a bridge and a process namespace in it: its link can be cut
without a word to either side, and all of its processes die at once as when its power fails. The
bridge stands in a namespace too, and no route leads out of it. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GCS_PORT = 6379
_JOIN_S, _TRY_S = 90.0, 30.0
_OBJECT_STORE_BYTES = 200 << 20


def is_possible() -> bool:
    """Whether this process may make namespaces."""
    tools = all(shutil.which(tool) for tool in ("ip", "nsenter", "unshare"))
    return tools and os.geteuid() == 0


class Network:
    """A bridge, 10.77.0.1, and the machines on it; all of it ends with the `with` block.

    Attributes:
        folder: Seen by all machines: the storage root may stand there.
    """

    address = "10.77.0.1"

    def __init__(self) -> None:
        self.name = f"chaos-{uuid.uuid4().hex[:6]}"
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self._machines: dict[str, Machine] = {}
        self._own: list[subprocess.Popen[bytes]] = []
        self._mounts: list[Path] = []

    def __enter__(self) -> Network:
        _run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", "br0", "type", "bridge")
        self.ip("addr", "add", f"{self.address}/24", "dev", "br0")
        self.ip("link", "set", "br0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self._machines.values():
            machine.kill()
        for process in self._own:
            process.kill()
            process.wait()
        for folder in self._mounts:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
        for name in [*(one.namespace for one in self._machines.values()), self.name]:
            subprocess.run(["ip", "netns", "del", name], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def mount(self, folder: Path, size_bytes: int) -> None:
        """Let a folder be a file system of its own, which can be full; before machines boot."""
        options = f"size={size_bytes}"
        _run("mount", "-t", "tmpfs", "-o", options, "chaos", str(folder))
        self._mounts.append(folder)

    def ip(self, *command: str) -> None:
        """Run `ip` where the bridge is."""
        _run("ip", "-n", self.name, *command)

    def machine(self, name: str, **env: str) -> Machine:
        """A new machine, which is on."""
        made = Machine(self, name, 2 + len(self._machines), env)
        self._machines[name] = made
        made.boot()
        return made

    def start(self, command: Sequence[str], log: Path, **env: str) -> subprocess.Popen[bytes]:
        """Run a process beside the bridge, as a client of the machines."""
        whole = ["ip", "netns", "exec", self.name, *command]
        with log.open("ab") as output:
            process = subprocess.Popen(
                whole, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=_env(env)
            )
        self._own.append(process)
        return process


class Machine:
    """One of them.

    Attributes:
        address: On the network.
        folder: Its own: Ray's session, what it spills, its logs.
    """

    def __init__(self, network: Network, name: str, number: int, env: Mapping[str, str]) -> None:
        self._network, self.name = network, name
        self.namespace = f"{network.name}-{number}"
        self.address = f"10.77.0.{number}"
        self.folder = network.folder / name
        self._port = f"port{number}"
        self._env = dict(env)
        self._power: subprocess.Popen[bytes] | None = None
        (self.folder / "ray").mkdir(parents=True)
        _run("ip", "netns", "add", self.namespace)
        network.ip("link", "add", self._port, "type", "veth",
                   "peer", "name", "eth0", "netns", self.namespace)  # fmt: skip
        network.ip("link", "set", self._port, "master", "br0", "up")
        for command in (
            "link set lo up", f"addr add {self.address}/24 dev eth0", "link set eth0 up",
            f"route add default via {network.address}",  # else Ray finds no address of its own
        ):  # fmt: skip
            _run("ip", "-n", self.namespace, *command.split())

    # --- power and link ---

    def boot(self) -> None:
        """Turn it on; nothing runs on it yet."""
        script = f"mkdir -p /tmp/ray && mount --bind {self.folder}/ray /tmp/ray && echo on && " \
                 "{ sleep infinity & wait; }"  # fmt: skip
        self._power = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--pid", "--fork",
             "--kill-child", "--mount-proc", "bash", "-c", script],
            stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._power.stdout
        if self._power.stdout.readline() != b"on\n":
            raise RuntimeError(f"machine {self.name} does not start: are namespaces permitted?")

    def kill(self) -> None:
        """Cut its power: all of its processes are gone at once, and nobody is told."""
        if self._power is not None:
            self._power.kill()
            self._power.wait()
            self._power = None

    @property
    def is_on(self) -> bool:
        """Whether it has power."""
        return self._power is not None

    def cut(self) -> None:
        """Packets from and to it are lost from now on."""
        self._network.ip("link", "set", self._port, "nomaster")

    def mend(self) -> None:
        """Packets pass again."""
        self._network.ip("link", "set", self._port, "master", "br0")

    # --- processes ---

    def start(
        self, command: Sequence[str], log: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Run a command on it, its output in a file of that name in its folder."""
        with (self.folder / log).open("ab") as output:
            return subprocess.Popen(
                ["nsenter", "--target", str(self._init), "--mount", "--pid", "--net",
                 f"--wd={ROOT}", *command],
                stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
                env=_env({**self._env, **(env or {})}),
            )  # fmt: skip

    def run(self, command: Sequence[str], log: str, *, timeout_s: float, **env: str) -> None:
        """Run a command on it to its end.

        Raises:
            RuntimeError: It failed; the end of its output is told.
        """
        process = self.start(command, log, env)
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            status = -1
        if status:
            said = (self.folder / log).read_text(errors="replace")[-4000:]
            raise RuntimeError(f"{' '.join(command)} on {self.name} ended with {status}:\n{said}")

    @property
    def _init(self) -> int:
        assert self._power is not None
        children = Path(f"/proc/{self._power.pid}/task/{self._power.pid}/children")
        return int(children.read_text().split()[0])

    def processes(self, *words: str) -> list[int]:
        """Ids, as this process sees them, of those whose command line has all the words."""
        mine = Path(f"/proc/{self._init}/ns/pid").readlink()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    is_mine = (entry / "ns/pid").readlink() == mine
                    if is_mine and command and all(word in command for word in words):
                        found.append(int(entry.name))
        return found

    def kill_process(self, *words: str) -> int:
        """End, as `kill -9` does, every process whose command line has the words; how many."""
        found = self.processes(*words)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)

    # --- Ray ---

    def head(self, *, cpus: float = 0, **env: str) -> None:
        """Start Ray's head on it; it offers no CPUs by default, as on a real cluster."""
        self._ray(["--head", f"--port={GCS_PORT}", "--include-dashboard=false"], cpus, env)

    def join(self, head: Machine, *, cpus: float, store_bytes: int = 0, **env: str) -> None:
        """Start a worker node on it."""
        address = f"--address={head.address}:{GCS_PORT}"
        self._ray([address], cpus, env, store_bytes)

    def _ray(
        self, which: Sequence[str], cpus: float, env: Mapping[str, str], store_bytes: int = 0
    ) -> None:
        ray = str(Path(sys.executable).parent / "ray")
        self.start(
            [ray, "start", "--block", "--disable-usage-stats", *which, f"--num-cpus={cpus:g}",
             f"--node-ip-address={self.address}", f'--resources={{"{self.name}": 1000}}',
             f"--object-store-memory={store_bytes or _OBJECT_STORE_BYTES}"],
            "ray.log", env,
        )  # fmt: skip


def environment(head: Machine) -> dict[str, str]:
    """What a driver needs to find the cluster."""
    return {"RAY_ADDRESS": f"{head.address}:{GCS_PORT}"}


@contextlib.contextmanager
def cluster(workers: int, *, cpus: float, **env: str) -> Iterator[tuple[Network, list[Machine]]]:
    """A network, a head and workers, when all have joined; the head comes first."""
    with Network() as network:
        head = network.machine("head", **env)
        head.head()
        machines = [head]
        for number in range(workers):
            machine = network.machine(f"worker{number}", **env)
            machine.join(head, cpus=cpus)
            machines.append(machine)
        await_nodes(head, len(machines))
        yield network, machines


def await_nodes(head: Machine, nodes: int) -> None:
    """Wait until so many nodes live.

    Raises:
        RuntimeError: They do not.
    """
    script = (
        "import ray, time; ray.init(log_to_driver=False, logging_level='error')\n"
        f"end = time.monotonic() + {_JOIN_S}\n"
        f"while sum(one['Alive'] for one in ray.nodes()) < {nodes}:\n"
        "    assert time.monotonic() < end, ray.nodes(); time.sleep(0.2)\n"
    )
    deadline = time.monotonic() + _JOIN_S
    while True:
        try:
            head.run([sys.executable, "-c", script], "nodes.log", timeout_s=_TRY_S,
                     **environment(head))  # fmt: skip
            return
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def _env(more: Mapping[str, Any]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", **more}


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
