"""What a process and its machine use: CPU, memory, GPU. Cheap enough to be read every second."""

import ctypes
import functools
import sys
import time
from pathlib import Path
from typing import Any

import psutil


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
    found = {
        "gpu_memory_bytes": float(torch.cuda.memory_reserved()),
        "gpu_memory_peak_bytes": float(torch.cuda.max_memory_reserved()),
    }
    busy = _gpu_percent(torch.cuda.current_device())
    return found if busy is None else {**found, "gpu_percent": busy}


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def _gpu_percent(device: int) -> float | None:
    """Share of the last sampling period in which a kernel ran on a CUDA device."""
    handle = _gpu_handle(device)
    if handle is None:
        return None
    library, pointer = handle
    found = _Utilization()
    failed = library.nvmlDeviceGetUtilizationRates(pointer, ctypes.byref(found))
    return None if failed else float(found.gpu)


@functools.cache
def _gpu_handle(device: int) -> tuple[Any, Any] | None:
    """NVIDIA's management library and its handle of a CUDA device, or None without it."""
    import torch

    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    pointer = ctypes.c_void_p()
    # By its unique id: CUDA_VISIBLE_DEVICES renumbers devices for torch alone.
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(pointer)):
        return None
    return library, pointer
