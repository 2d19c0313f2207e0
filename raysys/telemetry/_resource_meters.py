"""What a process and its machine use: CPU, memory, GPU. Cheap enough to be read every second."""

import sys
import time
from pathlib import Path
from typing import Any

import psutil

from raysys.imports import lazy_import

pynvml = lazy_import("pynvml")


class ProcessMeter:
    """What this process uses.

    The GPU figures are there where torch computes on one in this process.

    Example:
        >>> sorted(ProcessMeter().read())
        ['cpu_percent', 'cpu_seconds', 'memory_bytes', 'memory_peak_bytes']
    """

    def __init__(self) -> None:
        """Start measuring: the first reading is of the time from here."""
        self._cpu_s, self._moment_s = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """Figures by name.

        Returns:
            `cpu_seconds` of the process so far; `cpu_percent` since the last reading, 100 for a
            core that is busy; `memory_bytes` that are resident now, mapped blocks of the object
            store among them, and `memory_peak_bytes`, the most so far; of the current CUDA
            device `gpu_percent` (needs NVIDIA's management library), `gpu_memory_bytes` that
            torch holds there and `gpu_memory_peak_bytes`.
        """
        cpu_s, moment_s = time.process_time(), time.perf_counter()
        share = (cpu_s - self._cpu_s) / max(moment_s - self._moment_s, 1e-9)
        self._cpu_s, self._moment_s = cpu_s, moment_s
        memory, peak = _memory_bytes()
        return {
            "cpu_seconds": cpu_s,
            "cpu_percent": 100.0 * share,
            "memory_bytes": memory,
            "memory_peak_bytes": peak,
            **_gpu(),
        }


class NodeMeter:
    """What this machine uses, all its processes together."""

    def __init__(self) -> None:
        """Start measuring: the first reading is of the time from here."""
        psutil.cpu_percent()

    def read(self) -> dict[str, float]:
        """`node_cpu_percent` since the last reading, of all cores; `node_memory_bytes` in use."""
        return {
            "node_cpu_percent": psutil.cpu_percent(),
            "node_memory_bytes": float(psutil.virtual_memory().used),
        }


def _memory_bytes() -> tuple[float, float]:
    """Resident memory, now and at its peak.

    Of /proc, since the peak of getrusage begins with that of the process that forked this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    known = dict(line.split(":", 1) for line in lines)
    return float(known["VmRSS"].split()[0]) * 1024, float(known["VmHWM"].split()[0]) * 1024


def _gpu() -> dict[str, float]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    figures = {
        "gpu_memory_bytes": float(torch.cuda.memory_reserved()),
        "gpu_memory_peak_bytes": float(torch.cuda.max_memory_reserved()),
    }
    percent = _gpu_percent(torch)
    return figures if percent is None else {**figures, "gpu_percent": percent}


def _gpu_percent(torch: Any) -> float | None:
    """Share of the last sampling period in which a kernel ran on the current CUDA device.

    None where NVIDIA's management library is missing or does not know the device (a MIG slice).
    """
    try:
        return float(torch.cuda.utilization())
    except (ImportError, RuntimeError, pynvml.NVMLError):
        return None
