"""The serving layer and its peers, side by side: `python -m benchmarks.serving`.

Speed (all on this machine's cores, the load generator among them), what batching gives, faults
under load, overload, hostile input, and bulk prediction.
"""

from __future__ import annotations

import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np  # noqa: TC002 - a node says what it takes

from benchmarks._figures import Report, arguments
from benchmarks.serving import hostile, ours, peers, yardstick
from benchmarks.serving.bulk import compare_bulk
from benchmarks.serving.load import Load, run_load, start_load
from raysys import serve
from raysys.errors import RaysysError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from benchmarks.serving.peers import Peer

_CLIENTS = 32
_MANY = 100
_DEADLINE_S = 2.0
_KEY = "y"


class CannotStart:
    """A model that fails when it is loaded."""

    def __init__(self) -> None:
        raise RuntimeError("no such weights")

    def __call__(self, scaled: np.ndarray) -> np.ndarray:
        """Never gets here."""
        return scaled


def main() -> None:
    options = arguments(__doc__ or "")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that peers are ended too
    quick: bool = options.quick
    report = Report()
    with tempfile.TemporaryDirectory(prefix="raysys-") as place:
        folder = Path(place)
        yardstick.train(folder)
        speed(report, folder, rounds=1 if quick else 3, seconds=4 if quick else 6)
        with ours.ray_cluster():
            batching(report, folder, seconds=4 if quick else 8)
            faults(report, folder, kills=3 if quick else 6)
            overload(report, seconds=15 if quick else 60)
            attack(report, folder, cases=300 if quick else 2000)
        compare_bulk(report, folder, {1_000_000: 0.6} | ({} if quick else {10_000_000: 0.9}))
    report.write(options.json)


def speed(report: Report, folder: Path, rounds: int, seconds: float) -> None:
    """Requests a second and the time of a lone one; every round measures all, one at a time."""
    libraries: dict[str, Callable[[], AbstractContextManager[Peer]]] = {
        "FastAPI, 1 process": lambda: peers.fastapi(folder),
        "FastAPI, 2 processes": lambda: peers.fastapi(folder, processes=2),
        "LitServe": lambda: peers.litserve(folder),
        "MLServer": lambda: peers.mlserver(folder),
        "Ray Serve by hand": lambda: peers.serve_by_hand(folder),
    }
    rates: dict[str, list[float]] = {}
    lone_ms: dict[str, list[float]] = {}
    rows = yardstick.bodies()[1]

    def measure(name: str, url: str, bodies: Sequence[bytes], key: str) -> None:
        load = run_load(url, bodies, clients=_CLIENTS, seconds=seconds, key=key)
        if load.failed:
            raise RuntimeError(f"{name} failed {load.failed} of {load.sent} requests: {load}")
        rates.setdefault(name, []).append(load.requests_per_s)
        lone = run_load(url, bodies, clients=1, seconds=seconds / 2)
        lone_ms.setdefault(name, []).append(lone.ok.p50)

    for _ in range(rounds):
        for name, start in libraries.items():
            with start() as peer:
                measure(name, peer.url, [peer.body(row) for row in rows], peer.key)
        with ours.ray_cluster():
            for replicas in (1, 2):
                endpoint = ours.deploy("yardstick", ours.yardstick_graph(folder), replicas=replicas)
                title = f"raysys, {replicas} replica{'s' * (replicas > 1)}"
                measure(title, endpoint.url, yardstick.bodies()[0], _KEY)
    rate = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in rate.items():
        report.add(f"{name}: {_CLIENTS} clients", value, "requests/s")
    for name, values in lone_ms.items():
        report.add(f"{name}: lone client, p50", statistics.median(values), "ms")

    def ratio(us: str, them: str, least: float) -> None:
        value = statistics.median(a / b for a, b in zip(rates[us], rates[them], strict=True))
        report.add(f"{us} against {them}", value, "times", above=least)

    one, two = "raysys, 1 replica", "raysys, 2 replicas"
    best = max((one, two), key=lambda name: rate[name])
    ratio(best, "Ray Serve by hand", 40)
    ratio(one, "FastAPI, 1 process", 1.2)
    ratio(two, "FastAPI, 2 processes", 1.2)
    ratio(best, "LitServe", 2.5)
    ratio(best, "MLServer", 2.5)
    alone = statistics.median(
        a / b for a, b in zip(lone_ms[one], lone_ms["FastAPI, 1 process"], strict=True)
    )
    report.add("lone client, p50 against FastAPI's", alone, "times", below=2.5)


def batching(report: Report, folder: Path, seconds: float) -> None:
    """Batching on against off, with nothing else changed."""
    from benchmarks.serving.minilm import bodies as texts

    for name, graph, bodies, key, least in (
        ("MiniLM", ours.minilm_graph(), texts(), "vector", 3.0),
        ("yardstick", ours.yardstick_graph(folder), yardstick.bodies()[0], _KEY, 4.0),
    ):
        rates = {}
        for size in (1, 64):
            endpoint = ours.deploy(
                name,
                graph,
                deadline_s=60,  # a slow machine would refuse what waits for 10 s
                batching=serve.Batching(max_batch_size=size, max_queued_rows=4096),
            )
            load = run_load(endpoint.url, bodies, clients=_MANY, seconds=seconds, key=key)
            if load.failed or load.status.get("503"):
                raise RuntimeError(f"{name} in batches of {size}: {load}")
            rates[size] = load.requests_per_s
            report.add(f"{name}, batches of up to {size}: {_MANY} clients", rates[size],
                       "requests/s")  # fmt: skip
        report.add(f"{name}, batching on against off", rates[64] / rates[1], "times", above=least)
        serve.undeploy(name)


def faults(report: Report, folder: Path, kills: int) -> None:
    """Requests that fail while replicas are killed and versions change."""
    graph, bodies = ours.yardstick_graph(folder), yardstick.bodies()[0]
    endpoint = ours.deploy("yardstick", graph, replicas=2)

    def failed(name: str, seconds: float, meanwhile: Callable[[], None]) -> None:
        running = start_load(
            endpoint.url, bodies, clients=16, seconds=seconds, warmup_s=1.0, key=_KEY
        )
        time.sleep(2)
        meanwhile()
        load = running.result()
        bad = load.sent - load.status.get("200", 0) + load.wrong
        report.add(f"{name}: failed of {load.sent} requests", bad, "requests", below=1)

    def kill() -> None:
        for number in range(kills):
            ours.kill_one("yardstick", number)
            time.sleep(5)

    def roll() -> None:
        ours.deploy("yardstick", graph, replicas=2)

    def break_off() -> None:
        nodes = {name: node.call for name, node in graph.nodes.items()}
        broken = serve.Graph(
            inputs=graph.inputs, nodes={**nodes, "trees": serve.LazyObject(CannotStart)}, output="y"
        )
        try:
            ours.deploy("yardstick", broken, replicas=2)
        except RaysysError:
            return
        raise RuntimeError("a version that cannot start was deployed")

    failed(f"a replica killed every 5 s, {kills} times", 5.0 * kills + 5, kill)
    failed("a rolling update", 15, roll)
    failed("an update that cannot start", 25, break_off)
    serve.undeploy("yardstick")


def overload(report: Report, seconds: float) -> None:
    """Ten times what MiniLM can do: who is let in is served in time, the rest is told at once."""
    import psutil

    from benchmarks.serving.minilm import bodies as texts

    endpoint = ours.deploy("minilm", ours.minilm_graph(), deadline_s=_DEADLINE_S)
    usual = run_load(endpoint.url, texts(), clients=_CLIENTS, seconds=5, key="vector")
    rate = usual.requests_per_s
    calm = run_load(endpoint.url, texts(), clients=64, rate=rate / 2, seconds=5)
    watched = [psutil.Process(pid) for pid in ours.gateway_pids() + ours.process_pids("minilm")]

    def memory_mib() -> float:
        return sum(process.memory_info().rss for process in watched) / 2**20

    def storm(seconds: float) -> Load:
        return run_load(
            endpoint.url, texts(), clients=2000, rate=10 * rate, seconds=seconds, warmup_s=2
        )

    storm(5)  # buffers and pools take their size
    before = memory_mib()
    load = storm(seconds)
    grown = memory_mib() - before
    after = run_load(endpoint.url, texts(), clients=64, rate=rate / 2, seconds=10, warmup_s=0)
    bad = load.sent - load.status.get("200", 0) - load.status.get("503", 0)
    report.add("overload: sustainable, MiniLM", rate, "requests/s")
    report.add("overload: offered", load.sent / load.seconds, "requests/s")
    report.add("overload: answered", load.requests_per_s, "requests/s")
    report.add("overload: neither answered nor 503", bad, "requests", below=1)
    report.add("overload: slowest answer", load.ok.max, "ms", below=1000 * _DEADLINE_S)
    report.add("overload: 503 after, p50", load.unavailable.p50, "ms")
    report.add("overload: 503 after, p99", load.unavailable.p99, "ms", below=500)
    report.add("overload: memory grown", grown, "MiB", below=50)
    usual_ms = 2 * calm.ok.p99 + 20
    slow = [s.second for s in after.series if s.p99_ms is None or s.p99_ms > usual_ms]
    report.add("overload: back to normal after", 1 + max(slow, default=-1), "s", below=5)
    serve.undeploy("minilm")


def attack(report: Report, folder: Path, cases: int) -> None:
    """What hostile clients send."""
    endpoint = ours.deploy("yardstick", ours.yardstick_graph(folder))
    before = ours.process_pids("yardstick")
    errors = hostile.fuzz_openapi(endpoint, cases)
    report.add(f"schemathesis, {cases} cases: 5xx or off the schema", errors, "answers", below=1)
    errors = hostile.fuzz_bodies(endpoint, cases)
    report.add(f"malformed v2 and Arrow bodies, {cases}: 5xx", errors, "answers", below=1)
    lost = len(set(before) - set(ours.process_pids("yardstick")))
    report.add("processes of replicas lost meanwhile", lost, "processes", below=1)
    serve.undeploy("yardstick")


if __name__ == "__main__":
    main()
