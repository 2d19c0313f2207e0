import os
import sys
import time

import numpy as np
import psutil
import pytest

from raysys.telemetry import NodeMeter, ProcessMeter


def test_a_busy_process_shows_its_cpu_and_an_idle_one_none() -> None:
    meter = ProcessMeter()
    before = os.times()
    started = time.perf_counter()
    while time.process_time() < before.user + before.system + 0.3:
        sum(range(1000))
    spent, took = os.times(), time.perf_counter() - started
    figures = meter.read()
    cpu_s = spent.user + spent.system - before.user - before.system
    assert figures["cpu_percent"] == pytest.approx(100 * cpu_s / took, abs=15)
    assert figures["cpu_seconds"] == pytest.approx(spent.user + spent.system, abs=0.05)
    time.sleep(0.3)
    assert meter.read()["cpu_percent"] < 50


def test_memory_now_and_at_its_peak() -> None:
    meter = ProcessMeter()
    size = 200 << 20
    before = meter.read()["memory_bytes"]
    assert before == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    held = np.ones(size, np.uint8)
    full = meter.read()
    assert full["memory_bytes"] >= before + 0.9 * size
    assert full["memory_peak_bytes"] >= full["memory_bytes"]
    del held
    after = meter.read()
    assert after["memory_bytes"] <= before + 0.1 * size
    assert after["memory_peak_bytes"] >= before + 0.9 * size


@pytest.mark.skipif(
    "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized(), reason="CUDA is in use"
)
def test_without_a_gpu_there_are_no_figures_of_one() -> None:
    assert not [name for name in ProcessMeter().read() if "gpu" in name]


def test_a_gpu_shows_its_memory_and_work() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    meter = ProcessMeter()
    held = torch.ones(256 << 20, dtype=torch.uint8, device="cuda")
    figures = meter.read()
    assert figures["gpu_memory_bytes"] >= held.numel()
    assert figures["gpu_memory_peak_bytes"] >= figures["gpu_memory_bytes"]
    assert 0 <= figures["gpu_percent"] <= 100


def test_the_machine_uses_what_its_processes_use() -> None:
    meter = NodeMeter()
    started = time.perf_counter()
    while time.perf_counter() - started < 0.3:
        sum(range(1000))
    figures = meter.read()
    total = psutil.virtual_memory().total
    assert 0 < figures["node_cpu_percent"] <= 100
    assert psutil.Process().memory_info().rss * 0.5 < figures["node_memory_bytes"] <= total
