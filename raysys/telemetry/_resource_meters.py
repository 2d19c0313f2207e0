"""Meters of the CPU, memory and GPU use of a process and its machine, cheap to read each second."""

import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from raysys.imports import lazy_import

pynvml = lazy_import("pynvml")


class ProcessMeter:
    """Resource use of this process, with GPU figures where torch uses one in it.

    Example:
        >>> sorted(ProcessMeter().read())
        ['cpu_percent', 'cpu_seconds', 'memory_bytes', 'memory_peak_bytes']
    """

    def __init__(self) -> None:
        """Start measuring."""
        self._cpu_s, self._moment_s = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """Figures by name.

        Returns:
            `cpu_seconds` of the process so far; `cpu_percent` since the last reading, 100 for one
            busy core; `memory_bytes` resident now, including mapped blocks of the object store,
            and its peak `memory_peak_bytes`; for the current CUDA device `gpu_percent`,
            `gpu_memory_bytes` reserved by torch and `gpu_memory_peak_bytes`.
        """
        cpu_s, moment_s = time.process_time(), time.perf_counter()
        share = (cpu_s - self._cpu_s) / max(moment_s - self._moment_s, 1e-9)
        self._cpu_s, self._moment_s = cpu_s, moment_s
        # From /proc: the peak of getrusage starts at that of the process that forked this one.
        lines = Path("/proc/self/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        memory, peak = (float(status[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
        return {
            "cpu_seconds": cpu_s,
            "cpu_percent": 100.0 * share,
            "memory_bytes": memory,
            "memory_peak_bytes": peak,
            **_gpu(),
        }


class NodeMeter:
    """Resource use of this machine, over all processes."""

    def __init__(self) -> None:
        """Start measuring."""
        psutil.cpu_percent()

    def read(self) -> dict[str, float]:
        """`node_cpu_percent` since the last reading, of all cores; `node_memory_bytes` in use."""
        return {
            "node_cpu_percent": psutil.cpu_percent(),
            "node_memory_bytes": float(psutil.virtual_memory().used),
        }


def _gpu() -> dict[str, float]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    figures = {
        "gpu_memory_bytes": float(torch.cuda.memory_reserved()),
        "gpu_memory_peak_bytes": float(torch.cuda.max_memory_reserved()),
    }
    # NVIDIA's management library may be missing, or not know the device (a MIG slice).
    with suppress(ImportError, RuntimeError, pynvml.NVMLError):
        figures["gpu_percent"] = float(torch.cuda.utilization())
    return figures
