"""Other work on the machine while a benchmark runs: `--busy half` or `--busy crowded`."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import time

_PERIOD_S = 0.02
# Processes for each core, and the share of each period in which they compute.
STATES = {"half": (1, 0.5), "crowded": (2, 1.0)}


def keep_busy(state: str) -> None:
    """Keep each core busy until this process ends.

    Half busy: one process computes for half of every 20 ms. Crowded: two compute all the time, so
    that whatever else wants a core gets a third of it.
    """
    processes, share = STATES[state]
    for core in sorted(os.sched_getaffinity(0)):
        for _ in range(processes):
            command = [sys.executable, "-m", "benchmarks._busy", str(core), str(share)]
            atexit.register(subprocess.Popen(command).terminate)
    time.sleep(1.0)


def _compute(core: int, share: float) -> None:
    os.sched_setaffinity(0, {core})
    parent = os.getppid()
    while os.getppid() == parent:  # also when the benchmark was killed
        begun = time.perf_counter()
        while time.perf_counter() < begun + share * _PERIOD_S:
            pass
        time.sleep((1 - share) * _PERIOD_S)


if __name__ == "__main__":
    _compute(int(sys.argv[1]), float(sys.argv[2]))
