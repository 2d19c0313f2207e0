"""An application under load while what it stands on breaks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from benchmarks.chaos._machines import Network, await_nodes
from benchmarks.chaos._site import Site

if TYPE_CHECKING:
    from benchmarks._figures import Report

_BEFORE_S, _AFTER_S = 6.0, 12.0
_CUT_S, _FULL_S = 30.0, 15.0
_KEPT_BACK = {"disk": frozenset({"upsert"})}  # cannot be durable


def gateway(site: Site) -> None:
    """The gateway's process is killed."""
    assert site.head.kill_process("ray::Gateway")


def haproxy(site: Site) -> None:
    """HAProxy is killed."""
    assert site.head.kill_process("haproxy", "-W")


def gcs(site: Site) -> None:
    """Ray's GCS is killed, and the head with it; it starts again ten seconds later."""
    assert site.head.kill_process("gcs_server")
    time.sleep(10)
    site.head.kill_process("raylet/raylet")
    site.start_head()
    await_nodes(site.head, 1 + len(site.workers))


def head(site: Site) -> None:
    """The head's machine loses its power, and is turned on again ten seconds later."""
    site.head.kill()
    time.sleep(10)
    site.head.boot()
    site.start_head()
    await_nodes(site.head, 1 + len(site.workers))


def worker(site: Site) -> None:
    """A worker's machine loses its power; another joins ten seconds later."""
    victim = site.busiest()
    victim.kill()
    time.sleep(10)
    victim.boot()
    site.join(victim)


def link(site: Site) -> None:
    """A worker's link is cut for 30 s."""
    victim = site.busiest()
    victim.cut()
    time.sleep(_CUT_S)
    victim.mend()


def disk(site: Site) -> None:
    """The storage root is full for 15 s."""
    ballast = site.storage / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    time.sleep(_FULL_S)
    ballast.unlink()


def store(site: Site) -> None:
    """The object stores are full for 15 s, with twice as much as they hold."""
    site.module("fill", str(_FULL_S))


SCENARIOS: dict[str, tuple[Callable[[Site], None], float]] = {
    "gateway": (gateway, _AFTER_S),
    "haproxy": (haproxy, _AFTER_S),
    "disk": (disk, _AFTER_S),
    "store": (store, _AFTER_S),
    "link": (link, 20.0),
    "worker": (worker, 20.0),
    "gcs": (gcs, 25.0),
    "head": (head, 25.0),
}

QUICK = ("gateway", "haproxy", "disk", "worker", "gcs")


def measure(report: Report, names: Sequence[str]) -> None:
    """Run scenarios, each on a site of its own: what fails on one node stays on the others."""
    for name in names:
        fault, after_s = SCENARIOS[name]
        print(f"{name}: {fault.__doc__}", flush=True)
        with Network() as network:
            site = Site(network, workers=2, gateways=1)
            site.await_healthy()
            with site.load() as found:
                time.sleep(_BEFORE_S)
                fault(site)
                time.sleep(after_s)
                site.await_healthy()
            found[0].tell(report, name, may_refuse=_KEPT_BACK.get(name, frozenset()))
