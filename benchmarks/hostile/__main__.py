"""`python -m benchmarks.hostile`: attacks, and what 50 ordinary requests a second see of them."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING

import psutil

from benchmarks._figures import Report, arguments
from benchmarks.hostile import target
from benchmarks.hostile.attacks import ATTACKS
from benchmarks.serving import ours
from benchmarks.serving.load import Load, start_load
from raysys import serve

if TYPE_CHECKING:
    from collections.abc import Callable

_RATE, _DEADLINE_S = 50, 10.0
_REPLICAS = 2
_CALM_S = 10.0


def main() -> None:
    """Measure."""
    asked = arguments(__doc__)
    report = Report()
    seconds = 8.0 if asked.quick else 60.0
    with ours.ray_cluster():
        endpoint = ours.deploy(
            "target", target.graph(), replicas=_REPLICAS, cpus_per_replica=0.5,
            deadline_s=_DEADLINE_S,
            batching=serve.Batching(max_batch_size=target.ROOM_ROWS // 2,
                                    max_queued_rows=target.ROOM_ROWS // 2),
        )  # fmt: skip
        _others(endpoint, 5.0)
        quiet = _others(endpoint, seconds)
        report.add("quiet: p99", quiet.ok.p99, "ms")
        for name, attack in ATTACKS.items():
            _measure(report, endpoint, name, attack, quiet, seconds)
    report.write(asked.json)


def _measure(
    report: Report, endpoint: serve.Endpoint, name: str,
    attack: Callable[[serve.Endpoint, threading.Event], None], quiet: Load, seconds: float,
) -> None:  # fmt: skip
    before = _memory_mib()
    stop = threading.Event()
    attacking = threading.Thread(target=attack, args=(endpoint, stop), daemon=True)
    attacking.start()
    load = _others(endpoint, seconds)
    stop.set()
    attacking.join(_DEADLINE_S)
    answered = load.status.get("200", 0) - load.wrong
    report.add(f"{name}: others answered", 100 * answered / load.sent, "%", above=99.9 - 1e-9)
    report.add(f"{name}: p99 over quiet", load.ok.p99 / quiet.ok.p99, "times", below=3)
    report.add(f"{name}: slowest", load.ok.max, "ms")
    time.sleep(_CALM_S)
    report.add(f"{name}: memory 10 s later", _memory_mib() - before, "MiB", below=50)


def _others(endpoint: serve.Endpoint, seconds: float) -> Load:
    """Ordinary requests."""
    bodies = [json.dumps({"x": [number / 7] * 16}) for number in range(100)]
    return start_load(
        endpoint.url, bodies, clients=32, rate=_RATE, seconds=seconds, warmup_s=1.0, key="mean",
        timeout_s=_DEADLINE_S,
    ).result()  # fmt: skip


def _memory_mib() -> float:
    """Memory of the application's processes and the gateway's."""
    total = 0.0
    for pid in (*ours.process_pids("target"), *ours.gateway_pids()):
        try:
            total += psutil.Process(pid).memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            continue
    return total


if __name__ == "__main__":
    main()
