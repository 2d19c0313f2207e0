"""API keys under attack: a rate that is slightly too high, and a key revoked as another is made."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from typing import TYPE_CHECKING

from benchmarks.hostile import target
from benchmarks.serving import ours
from benchmarks.serving.load import start_load
from raysys import serve
from raysys.gateway import create_key, read_keys, revoke_key
from raysys.storage import Storage

if TYPE_CHECKING:
    from benchmarks._figures import Report

_LIMIT = 100  # requests per second
_PAIRS = 20


def measure(report: Report, seconds: float) -> None:
    """A steady 101 requests a second with a key for 100, while other keys come and go."""
    storage = ours.gateway_storage()
    endpoint = ours.deploy("guarded", target.graph(), cpus_per_replica=0.5, protected=True)
    key = create_key(storage, "steady", rate_per_s=_LIMIT)
    time.sleep(3.0)  # the gateway reads keys each second
    headers, body = {"x-api-key": key}, json.dumps({"x": [1.0]})

    def send(for_s: float) -> float:
        load = start_load(
            endpoint.url, [body], clients=32, rate=_LIMIT + 1, seconds=for_s, headers=headers,
            key="mean",
        ).result()  # fmt: skip
        return load.status.get("200", 0) / (_LIMIT * for_s)

    try:
        report.add("101 requests/s with a key for 100: answered", send(seconds), "of 100/s",
                   above=0.95)  # fmt: skip
        stop = threading.Event()
        turning = threading.Thread(target=_turn, args=(storage, stop))
        turning.start()
        shares = send(seconds)
        stop.set()
        turning.join()
        report.add("the same while other keys come and go", shares, "of 100/s", below=1.1)
    finally:
        revoke_key(storage, "steady")
        serve.undeploy("guarded")
    report.add("keys wrong after 20 pairs of changes", _race(), "keys", below=1)


def _turn(storage: Storage, stop: threading.Event) -> None:
    """A change of the keys each second, for which HAProxy takes new tables."""
    number = 0
    while not stop.wait(1.0):
        number += 1
        create_key(storage, f"turn-{number}")
        revoke_key(storage, f"turn-{number}")


def _race() -> int:
    """Keys that are there and should not be, or the reverse, after pairs at the same moment."""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        create_key(storage, "old-0")
        for pair in range(_PAIRS):
            together = threading.Barrier(2)

            def revoke(name: str = f"old-{pair}", together: threading.Barrier = together) -> None:
                together.wait()
                revoke_key(storage, name)

            def create(
                name: str = f"old-{pair + 1}", together: threading.Barrier = together
            ) -> None:
                together.wait()
                create_key(storage, name)

            threads = [threading.Thread(target=change) for change in (revoke, create)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wrong += {key.name for key in read_keys(storage)} != {f"old-{pair + 1}"}
    return wrong
