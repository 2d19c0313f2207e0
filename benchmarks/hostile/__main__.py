"""`python -m benchmarks.hostile`: attacks, and what 50 ordinary requests a second see of them."""

from __future__ import annotations

import functools
import json
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil

from benchmarks._figures import Report, arguments
from benchmarks.hostile import damage, keys, target
from benchmarks.hostile.attacks import ATTACKS, POISONS, kill_supervisor
from benchmarks.hostile.index_attacks import INDEX_ATTACKS, build_index
from benchmarks.serving import ours
from benchmarks.serving.load import Load, start_load
from raysys import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_RATE, _DEADLINE_S = 50, 10.0
_REPLICAS = 2
_CALM_S, _GROWN_MIB = 10.0, 50.0
_SEEN_EVERY_S = 1.0


class _Ordinary(NamedTuple):
    """Ordinary requests to an application.

    Attributes:
        name: Name of the application.
        url: URL of the requests.
        bodies: Bodies, sent in turn.
        key: Key of the JSON of each answer.
    """

    name: str
    url: str
    bodies: Sequence[str]
    key: str

    def send(self, seconds: float) -> Load:
        """Send requests at the rate that all attacks are measured beside."""
        return start_load(
            self.url, self.bodies, clients=32, rate=_RATE, seconds=seconds, warmup_s=1.0,
            key=self.key, timeout_s=_DEADLINE_S,
        ).result()  # fmt: skip


def main() -> None:
    """Measure."""
    asked = arguments(__doc__)
    report = Report()
    seconds = 5.0 if asked.quick else 60.0
    with ours.ray_cluster():
        endpoint = ours.deploy(
            "target", target.graph(), replicas=_REPLICAS, cpus_per_replica=0.5,
            deadline_s=_DEADLINE_S,
            batching=serve.Batching(max_batch_size=target.ROOM_ROWS // 2,
                                    max_queued_rows=target.ROOM_ROWS // 2),
        )  # fmt: skip
        means = _Ordinary(
            "target", endpoint.url,
            [json.dumps({"x": [number / 7] * 16}) for number in range(100)], "mean",
        )  # fmt: skip
        quiet = _quiet(report, means, seconds)
        for name, attack in (ATTACKS | {"the port's owner killed": kill_supervisor}).items():
            _measure(report, means, name, functools.partial(attack, endpoint), quiet, seconds)
        for name, attack in POISONS.items():
            _measure_poison(report, means, name, functools.partial(attack, endpoint), seconds)
        serve.undeploy("target")
        with build_index() as index:
            shelf = ours.deploy("shelf", serve.index_graphs(index), cpus_per_replica=0.5)
            vectors = np.random.default_rng(1).normal(size=(100, index.settings.dim))
            searches = _Ordinary(
                "shelf", f"{shelf.url}/search",
                [json.dumps({"vector": row.tolist(), "filter": "year > 1950"}) for row in vectors],
                "ids",
            )  # fmt: skip
            quiet = _quiet(report, searches, seconds)
            for name, attack in INDEX_ATTACKS.items():
                _measure(report, searches, name, functools.partial(attack, shelf), quiet, seconds)
            serve.undeploy("shelf")
        keys.measure(report, seconds=5.0 if asked.quick else 20.0)
    damage.measure(report)
    report.write(asked.json)


def _quiet(report: Report, ordinary: _Ordinary, seconds: float) -> Load:
    ordinary.send(3.0)
    quiet = ordinary.send(seconds)
    report.add(f"{ordinary.name}, quiet: p99", quiet.ok.p99, "ms")
    return quiet


def _measure(
    report: Report, ordinary: _Ordinary, name: str, attack: Callable[[threading.Event], object],
    quiet: Load, seconds: float,
) -> None:  # fmt: skip
    before = _memory_mib(ordinary.name)
    load = _beside(attack, ordinary, seconds)
    answered = load.status.get("200", 0) - load.wrong
    report.add(f"{name}: others answered", 100 * answered / load.sent, "%", above=99.9 - 1e-9)
    report.add(f"{name}: p99 over quiet", load.ok.p99 / quiet.ok.p99, "times", below=3)
    report.add(f"{name}: slowest", load.ok.max, "ms")
    ended = time.monotonic()
    while (grown := _memory_mib(ordinary.name) - before) > _GROWN_MIB:
        if time.monotonic() > ended + _CALM_S:
            break
        time.sleep(0.5)
    report.add(f"{name}: memory within 10 s", grown, "MiB", below=_GROWN_MIB)


def _measure_poison(
    report: Report, ordinary: _Ordinary, name: str, attack: Callable[[threading.Event], int],
    seconds: float,
) -> None:  # fmt: skip
    """An attack that returns how many requests it sent, each of which may end one process."""
    sent, over = [0], threading.Event()
    pids: set[int] = set()

    def look() -> None:
        while not over.wait(_SEEN_EVERY_S):
            pids.update(ours.process_pids(ordinary.name))

    def poison(stop: threading.Event) -> None:
        sent[0] = attack(stop)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    load = _beside(poison, ordinary, seconds)
    time.sleep(_DEADLINE_S)  # the last one has had its effect
    over.set()
    looking.join()
    ended = sum(not psutil.pid_exists(pid) for pid in pids)
    answered = load.status.get("200", 0) - load.wrong
    report.add(f"{name}: others answered", 100 * answered / load.sent, "%", above=100 - 1e-9)
    report.add(f"{name}: slowest", load.ok.max, "ms", below=1000)
    report.add(f"{name}: processes for each", ended / max(1, sent[0]), "processes", below=1 + 1e-9)


def _beside(
    attack: Callable[[threading.Event], object], ordinary: _Ordinary, seconds: float
) -> Load:
    """Ordinary requests while an attack goes on."""
    stop = threading.Event()
    attacking = threading.Thread(target=attack, args=(stop,), daemon=True)
    attacking.start()
    load = ordinary.send(seconds)
    stop.set()
    attacking.join(_DEADLINE_S)
    return load


def _memory_mib(application: str) -> float:
    """Memory of the application's processes and the gateway's."""
    total = 0.0
    for pid in (*ours.process_pids(application), *ours.gateway_pids()):
        try:
            total += psutil.Process(pid).memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            continue
    return total


if __name__ == "__main__":
    main()
