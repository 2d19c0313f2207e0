"""The pipeline on data four times the size of the object store.

`python -m benchmarks.data.outofcore FLIGHTS OUT STORE_BYTES` runs it on a cluster of its own and
prints what it took as JSON.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks._figures import Report
from benchmarks.data.flights10 import write_csv

_LIMIT_MB = 1500
_CPUS = 5  # what raysys offers on a machine of two cores


def run(report: Report, quick: bool) -> None:
    """Run the pipeline in a separate process, with its own cluster."""
    times = 5 if quick else 10
    with tempfile.TemporaryDirectory() as temporary:
        flights = Path(temporary) / "flights.csv"
        write_csv(flights, times)
        store = times * 18_000_000  # a quarter of the joined table's 75.6 MB a copy
        command = [sys.executable, "-m", "benchmarks.data.outofcore", str(flights), temporary,
                   str(store)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the out-of-core pipeline failed: {done.stderr[-3000:]}")
        result = json.loads(done.stdout.splitlines()[-1])
    ratio = result["table_bytes"] / store
    report.add("out of core: table against the object store", ratio, "times", above=4)
    report.add("out of core: rows written", result["rows"], "rows", above=327_346 * times - 1)
    report.add("out of core: spilled", result["spilled_bytes"] / 1e6, "MB", above=0)
    report.add("out of core: seconds", result["seconds"], "s")
    peak = result["peak_bytes"] / 1e6
    report.add("out of core: peak memory of a process", peak, "MB", below=_LIMIT_MB)
    print(f"which was {result['peak_of']}")


class _Peaks(threading.Thread):
    """Peak resident memory of this process and its descendants, including shared memory."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[int, tuple[int, str]] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        import psutil

        me = psutil.Process()
        while not self.ended.wait(0.1):
            for process in (me, *me.children(recursive=True)):
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    name = " ".join(process.cmdline()[:1]) or process.name()
                except (OSError, psutil.Error):
                    continue
                peak = next((line for line in status.splitlines() if "VmHWM" in line), None)
                nbytes = int(peak.split()[1]) * 1024 if peak else 0
                if nbytes > self.peaks.get(process.pid, (0, ""))[0]:
                    self.peaks[process.pid] = (nbytes, name)


def _main() -> None:
    flights, out, store = sys.argv[1:]
    import ray

    from benchmarks.data.pipeline import our_pipeline
    from raysys.storage import Storage

    ray.init(
        address="local", num_cpus=_CPUS, object_store_memory=int(store),
        log_to_driver=False, logging_level="error", include_dashboard=False,
    )  # fmt: skip
    peaks = _Peaks()
    peaks.start()
    started = time.perf_counter()
    sizes: list[int] = []
    rows = our_pipeline(flights, Storage(out), "raysys", sizes)
    seconds = time.perf_counter() - started
    peaks.ended.set()
    from ray._private.internal_api import memory_summary

    address = ray.get_runtime_context().gcs_address
    summary = memory_summary(address, stats_only=True)
    spilled = [line for line in summary.splitlines() if line.startswith("Spilled")]
    peak, name = max(peaks.peaks.values())
    ray.shutdown()
    print(
        json.dumps(
            {
                "rows": rows, "seconds": seconds, "table_bytes": sizes[0], "peak_bytes": peak,
                "peak_of": name.rpartition("/")[2],
                "spilled_bytes": float(spilled[0].split()[1]) * 2**20 if spilled else 0,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    _main()
