"""A cluster that serves, clients that ask it, and what they saw."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.chaos._application import PORT
from benchmarks.chaos._machines import ROOT, Machine, Network, await_nodes, environment

if TYPE_CHECKING:
    from benchmarks._figures import Report

DEADLINE_S = 10.0
_HANG_S = DEADLINE_S + 2.0
_READY_S, _CPUS = 90.0, 6.0
_REDIS_PORT = 6390
_STORAGE_BYTES = 64 << 20
_KINDS = (
    {"kind": "score", "path": "/score", "clients": 4, "each_s": 0.1, "first": 0},
    {"kind": "search", "path": "/chaos/search", "clients": 2, "each_s": 0.1, "first": 0},
    {"kind": "upsert", "path": "/chaos/upsert", "clients": 2, "each_s": 0.2, "first": 0},
)


@dataclasses.dataclass
class Seen:
    """What clients saw of a while.

    Attributes:
        lines: `(kind, number, started, seconds, asked again, outcome)` of each request.
        lost: Acknowledged rows that are not there, or not as they were given.
        checked: Acknowledged rows.
    """

    lines: list[tuple[str, int, float, float, int, int | str]]
    lost: int
    checked: int

    def tell(self, report: Report, fault: str, *, may_refuse: frozenset[str] = frozenset()) -> None:
        """Figures of a fault.

        Args:
            report: Takes them.
            fault: Names them.
            may_refuse: Kinds of requests that cannot be answered under it: they count only as to
                how they fail.
        """
        outcomes = Counter((one[0], one[-1]) for one in self.lines if one[-1] != 200)
        counted = [one for one in self.lines if one[0] not in may_refuse]
        answered = sum(one[-1] == 200 for one in counted)
        other = sum(one[-1] not in (200, 503) for one in self.lines)
        slow = sum(one[3] > _HANG_S for one in self.lines)
        for (kind, outcome), number in sorted(outcomes.items(), key=str):
            print(f"    {kind}: {number} times {outcome}", flush=True)
        report.add(f"{fault}: requests", len(self.lines), "requests")
        report.add("  answered", 100 * answered / len(counted), "%", above=99.9 - 1e-9)
        report.add("  failures other than 503", other, "requests", below=1)
        again = sum(one[4] for one in self.lines)
        report.add("  asked twice, after a broken connection", again, "requests")
        report.add(f"  longer than {_HANG_S:g} s", slow, "requests", below=1)
        report.add("  the slowest", max(one[3] for one in self.lines), "s")
        report.add("  acknowledged changes", self.checked, "rows")
        report.add("  of them lost", self.lost, "rows", below=1)


class Site:
    """A head, workers, Redis behind the head, two applications, and a storage root for all.

    Attributes:
        network: Of the machines.
        head: Offers no CPUs.
        workers: Hold the replicas.
        storage: Folder of the storage root, a file system of its own.
    """

    def __init__(self, network: Network, workers: int, gateways: int) -> None:
        self.network, self._gateways = network, gateways
        self.storage = network.folder / "storage"
        self.storage.mkdir()
        network.mount(self.storage, _STORAGE_BYTES)
        self._redis()
        self.head = network.machine("head", RAYSYS_STORAGE=str(self.storage))
        self.workers: list[Machine] = []
        self.start_head()
        for _ in range(workers):
            self.add_worker()
        await_nodes(self.head, 1 + workers)
        self._trials = 0
        self.module("deploy", str(self.storage), str(gateways))

    def _redis(self) -> None:
        folder = self.network.folder / "redis"
        folder.mkdir()
        command = [
            str(redis_server()), "--bind", self.network.address, "--port", str(_REDIS_PORT),
            "--protected-mode", "no", "--dir", str(folder), "--save", "",
        ]  # fmt: skip
        self.network.start(command, folder / "log")

    def start_head(self) -> None:
        """Start Ray's head, which finds in Redis what the one before it left."""
        self.head.head(
            RAY_REDIS_ADDRESS=f"{self.network.address}:{_REDIS_PORT}",
            RAY_external_storage_namespace="chaos",
        )

    def add_worker(self) -> Machine:
        """A further node."""
        name = f"worker{len(self.workers)}"
        machine = self.network.machine(name, RAYSYS_STORAGE=str(self.storage))
        self.join(machine)
        self.workers.append(machine)
        return machine

    def join(self, worker: Machine) -> None:
        """Start Ray on a worker's machine."""
        worker.join(self.head, cpus=_CPUS)

    def busiest(self) -> Machine:
        """The worker with the most replicas, of the index and of the applications."""
        counts = {
            one.name: len(one.processes("ray::ServeReplica")) + len(one.processes("ray::Replica"))
            for one in self.workers
        }
        print(f"    replicas on each: {counts}", flush=True)
        return max(self.workers, key=lambda one: counts[one.name])

    def module(self, *arguments: str) -> None:
        """Run `_application` on the head."""
        self.head.run(
            [sys.executable, "-m", "benchmarks.chaos._application", *arguments],
            "application.log", timeout_s=180, **environment(self.head),
        )  # fmt: skip

    @property
    def addresses(self) -> list[str]:
        """Of the gateways, the head's first."""
        machines = [self.head, *self.workers][: self._gateways]
        return [f"{one.address}:{PORT}" for one in machines]

    @contextlib.contextmanager
    def load(self) -> Iterator[list[Seen]]:
        """Clients ask while the block runs; what they saw is in the list after it."""
        self._trials += 1
        plan, out = self.network.folder / "plan.json", self.network.folder / f"{self._trials}.jsonl"
        first = 10_000_000 * self._trials
        content = {
            "addresses": self.addresses,
            "requests": [{**kind, "first": first} for kind in _KINDS],
            "patience_s": 30.0,
            "seconds": 300.0,
            "out": str(out),
        }
        plan.write_text(json.dumps(content))
        log = self.network.folder / "load.log"
        command = [sys.executable, "-m", "benchmarks.chaos._load", str(plan)]
        process, found = self.network.start(command, log), list[Seen]()
        try:
            yield found
        finally:
            Path(f"{out}.stop").touch()
            process.wait(60)
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        done = [one[1] for one in lines if one[0] == "upsert" and one[-1] == 200]
        told, answer = out.with_suffix(".acknowledged"), out.with_suffix(".checked")
        told.write_text(json.dumps(done))
        self.module("check", str(told), str(answer))
        checked = json.loads(answer.read_text())
        found.append(Seen(lines, checked["lost"], checked["rows"]))

    def await_healthy(self) -> None:
        """Wait until every kind of request is answered by every gateway.

        Raises:
            RuntimeError: It is not.
        """
        probe = (
            "import json, sys, urllib.request\n"
            "from benchmarks.chaos._load import body\n"
            "for base in sys.argv[1:]:\n"
            "    for kind, path in [('score', '/score'), ('search', '/chaos/search'),"
            " ('upsert', '/chaos/upsert')]:\n"
            "        call = urllib.request.Request('http://' + base + path, json.dumps(body(kind,"
            " 9_000_000)).encode(), {'Content-Type': 'application/json'})\n"
            "        urllib.request.urlopen(call, timeout=15).read()\n"
        )
        deadline = time.monotonic() + _READY_S
        log = self.network.folder / "probe.log"
        while True:
            command = [sys.executable, "-c", probe, *self.addresses]
            if self.network.start(command, log).wait() == 0:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"it does not answer again: {log.read_text()[-2000:]}")
            time.sleep(0.5)


def redis_server() -> Path:
    """Debian's Redis, made ready below `.venv` if the machine has none."""
    if installed := shutil.which("redis-server"):
        return Path(installed)
    subprocess.run([str(ROOT / ".ci/debian-tools")], check=True)
    return ROOT / ".venv/debian/bin/redis-server"
