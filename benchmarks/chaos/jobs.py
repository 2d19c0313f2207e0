"""A worker's machine loses its power in each step of each job; the job must end the same."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.chaos._machines import Machine, Network, await_nodes, environment

if TYPE_CHECKING:
    import subprocess

    from benchmarks._figures import Report

_WORKERS, _CPUS = 2, 8.0
_STORE_BYTES = 700 << 20
_AWAY_S, _LIMIT_S = 5.0, 600.0
_WORK_S, _INTO_S = 20.0, 0.5
_EQUAL = 1e-6
_NO_WORK = ("ray::IDLE", "ray::DashboardA", "ray::RuntimeEnv")


@dataclass(frozen=True)
class Flagged:
    """A job, made small.

    Attributes:
        flags: Its settings.
        steps: In each of which a machine is killed, in the job's order.
        quick: Those of a quick run.
    """

    flags: tuple[str, ...]
    steps: tuple[str, ...]
    quick: tuple[str, ...]


JOBS = {
    "recommender": Flagged(
        ("--no-serve", "--epochs=2", "--retrieval-trials=1", "--ranker-trials=2", "--shards=2"),
        ("etl", "tune retrieval", "train retrieval", "make candidates", "tune ranker",
         "train ranker", "store model", "build index", "evaluate"),
        ("train retrieval", "build index"),
    ),
    "flight_delays": Flagged(
        ("--no-serve", "--no-compare", "--epochs=1", "--boost-trials=1", "--rounds=60"),
        ("etl", "make features", "fit featurizer", "look for leaks", "tune boosting", "boost",
         "train network", "combine models", "score", "fit blend", "store model", "evaluate"),
        ("etl", "boost"),
    ),
}  # fmt: skip


def measure(report: Report, name: str, steps: Sequence[str] | None, quick: bool) -> None:
    """Run a job undisturbed, then once from each step with a machine killed in it."""
    job = JOBS[name]
    with Network() as network:
        storage = network.folder / "storage"
        storage.mkdir()
        site = _Site(network, storage)
        print(f"{name}, undisturbed", flush=True)
        started = time.monotonic()
        site.run(name, job.flags)
        report.add(f"{name}: undisturbed", time.monotonic() - started, "s")
        truth = _measures(storage, name)
        assert truth, f"{name} measured nothing"
        for step in steps or (job.quick if quick else job.steps):
            started = time.monotonic()
            ended, victim = site.run(name, (*job.flags, f"--from={step}"), kill_in=step)
            seconds = time.monotonic() - started
            found = _measures(storage, name) if ended else {}
            apart = max((abs(found[key] - value) for key, value in truth.items()
                         if key in found), default=float("inf"))  # fmt: skip
            missing = len(truth.keys() - found.keys())
            report.add(f"{name}, {victim or 'nothing'} killed in {step}: ended", ended, "",
                       above=0.5)  # fmt: skip
            report.add("  measures that are missing", missing, "", below=1)
            report.add("  measures apart at most", apart, "", below=_EQUAL)
            report.add("  from this step to the end", seconds, "s")
            site.repair()


class _Site:
    """A head without CPUs, on which the driver runs, and workers."""

    def __init__(self, network: Network, storage: Path) -> None:
        self.head = network.machine("head", RAYSYS_STORAGE=str(storage))
        self.head.head()
        self.workers = [
            network.machine(f"worker{number}", RAYSYS_STORAGE=str(storage))
            for number in range(_WORKERS)
        ]
        for worker in self.workers:
            self._join(worker)
        await_nodes(self.head, 1 + _WORKERS)

    def _join(self, worker: Machine) -> None:
        worker.join(self.head, cpus=_CPUS, store_bytes=_STORE_BYTES)

    def run(
        self, name: str, flags: Sequence[str], kill_in: str | None = None
    ) -> tuple[bool, str | None]:
        """Run a job to its end; whether it ended well, and which machine was killed."""
        log = self.head.folder / f"{name}.log"
        before = log.stat().st_size if log.exists() else 0
        command = [sys.executable, "-u", "-m", f"jobs.{name}", *flags]
        process = self.head.start(command, log.name, environment(self.head))
        victim: Machine | None = None
        killed, deadline = 0.0, time.monotonic() + _LIMIT_S
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
            said = log.read_text(errors="replace")[before:]
            if kill_in and victim is None and f"[{kill_in}] ..." in said:
                victim = self._await_work(process)
                if victim is not None:
                    victim.kill()
                    killed = time.monotonic()
                    print(f"    killed {victim.name} in {kill_in}", flush=True)
                else:
                    kill_in = None
            if killed and time.monotonic() - killed > _AWAY_S:
                assert victim
                victim.boot()
                self._join(victim)
                killed = 0.0
        if process.poll() is None:
            process.kill()
        said = log.read_text(errors="replace")[before:]
        if process.returncode:
            print(said[-3000:], flush=True)
            if not victim:
                raise RuntimeError(f"{name} fails undisturbed")
        return process.returncode == 0, victim.name if victim else None

    def _await_work(self, process: subprocess.Popen[bytes]) -> Machine | None:
        """The worker on which most tasks and actors run, once some do; None if none ever does."""
        deadline = time.monotonic() + _WORK_S
        while time.monotonic() < deadline and process.poll() is None:
            counts = {one.name: len(_busy(one)) for one in self.workers}
            if any(counts.values()):
                time.sleep(_INTO_S)
                return max(self.workers, key=lambda one: counts[one.name])
            time.sleep(0.02)
        return None

    def repair(self) -> None:
        """Have all machines on again."""
        for worker in self.workers:
            if not worker.is_on:
                worker.boot()
                self._join(worker)
        await_nodes(self.head, 1 + _WORKERS)


def _busy(machine: Machine) -> list[int]:
    """Processes of a machine that run a task or are an actor."""
    idle = {pid for word in _NO_WORK for pid in machine.processes("ray::", word)}
    return [pid for pid in machine.processes("ray::") if pid not in idle]


def _measures(storage: Path, name: str) -> dict[str, float]:
    """What the last run of a job has measured."""
    files = (storage / "runs").glob(f"{name}-*/run.json")
    last = json.loads(max(files, key=lambda file: file.stat().st_mtime).read_text())
    return {key: float(value) for key, value in last["metrics"].items()}
