"""The worker actor of trials: one setting after another in one process."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import socket
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import ray
import torch
import torch.distributed as dist

from raysys.train._checkpoint import TrainingProgress
from raysys.train._loader import micro_batches, steps_per_epoch
from raysys.train._loop import TrainCallback, evaluate, run_steps
from raysys.train._module import built_module
from raysys.train._settings import GPU_BACKEND
from raysys.train._task import prepared_examples
from raysys.train.strategies._registry import make_strategy

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.train._loop import Point
    from raysys.train._settings import TrainSettings
    from raysys.train._task import TrainingTask
    from raysys.train.strategies._strategy import MicroBatch, Strategy

_FIRST_STEPS = 3  # in which buffers are allocated and kernels chosen
_LAST_SHARE = 4  # the training loss is the mean of the last quarter of the steps


class TrialWorker:
    """Actor: one rank of a process group that stays."""

    def __init__(
        self, task: TrainingTask, tables: Mapping[str, Table], rank: int, world: int, gpu: bool
    ) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": "0"}
        self._task, self._rank, self._world = task, rank, world
        self._device = "cuda:0" if gpu else "cpu"
        self._examples = prepared_examples(task, tables)
        self._runners: dict[int, _StepRunner] = {}

    def __repr__(self) -> str:  # name in the dashboard
        return f"measure a step:{self._rank}"

    def address(self) -> str:
        """Address of rank 0 for the process group."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def join(self, address: str) -> dict[str, Any]:
        """Enter the process group; returns facts about this process."""
        backend = "gloo" if self._device == "cpu" else GPU_BACKEND
        dist.init_process_group(backend, address, rank=self._rank, world_size=self._world)
        self._free()
        self._process_bytes = psutil.Process().memory_info().rss
        return {"examples": self._examples, "bf16": self._has_fast_bf16()}

    def leave(self) -> None:
        """Leave the process group."""
        self._runners.clear()
        dist.destroy_process_group()

    def prepare(self, key: int, settings: TrainSettings) -> dict[str, float]:
        """Build a strategy and take its first steps."""
        self._free()
        before = self._start_memory_peak()
        started = time.perf_counter()
        strategy = self._make_strategy(settings)
        strategy.module.train()
        batches = micro_batches(
            self._task, settings, self._examples,
            data_shard=strategy.data_shard, steps=range(1 << 40), device=self._device,
        )  # fmt: skip
        runner = _StepRunner(settings, strategy, batches, self._rank)
        runner.run(1)
        first = time.perf_counter() - started
        seconds, _ = runner.run(_FIRST_STEPS)
        self._runners[key] = runner
        step, memory = statistics.median(seconds), self._memory_peak(before)
        return {"step_s": step, "start_s": max(0.0, first - step), "memory_bytes": memory}

    def run_steps(self, key: int, count: int) -> tuple[list[float], float]:
        """Seconds of each step, and CPU-seconds of this process in all of them."""
        return self._runners[key].run(count)

    def close(self, key: int) -> None:
        """Free a strategy."""
        self._runners.pop(key, None)
        if not any(runner.settings.compile for runner in self._runners.values()):
            torch.compiler.reset()

    def train(self, settings: TrainSettings, samples: int, measure: bool) -> dict[str, float]:
        """Train through a whole schedule of `samples` samples."""
        steps = max(1, samples // settings.batch_size)
        epochs = math.ceil(steps / steps_per_epoch(self._examples, settings))
        schedule = {"epochs": epochs, "max_steps": steps, "evaluate": False}
        settings = settings.model_copy(update=schedule)
        self._free()
        before = self._start_memory_peak()
        strategy = self._make_strategy(settings)
        losses = _StepLosses()
        run_steps(
            self._task, settings, strategy, self._examples, TrainingProgress(), losses,
            rank=self._rank, device=self._device,
        )  # fmt: skip
        last = losses.values[-max(1, len(losses.values) // _LAST_SHARE) :]
        metrics = {
            "train_loss": statistics.fmean(last),
            "memory_bytes": self._memory_peak(before),
            "samples": float(steps * min(settings.batch_size, self._examples)),
        }
        if measure:
            parameters = strategy.full_state_dict()
            if self._rank == 0:
                metrics |= evaluate(self._task, parameters)
        return metrics

    def _make_strategy(self, settings: TrainSettings) -> Strategy:
        torch.set_num_threads(settings.threads_per_worker or 1)
        torch.use_deterministic_algorithms(settings.deterministic)
        module = built_module(self._task, settings.seed, self._examples)
        return make_strategy(self._task, module, settings, self._device, self._examples)

    def _has_fast_bf16(self) -> bool:
        if self._device != "cpu":
            return torch.cuda.is_bf16_supported()
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        return "amx_bf16" in flags or "avx512_bf16" in flags

    def _free(self) -> None:
        """Return the memory of earlier strategies, so that it does not count for the next."""
        gc.collect()
        if self._device == "cpu":
            ctypes.CDLL(None).malloc_trim(0)
        else:
            torch.cuda.empty_cache()

    def _start_memory_peak(self) -> int:
        """Reset the peak; returns the bytes in use now."""
        if self._device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak of the process
        return psutil.Process().memory_info().rss

    def _memory_peak(self, before: int) -> float:
        """Peak bytes of a process with this strategy alone."""
        if self._device != "cpu":
            return float(torch.cuda.max_memory_allocated() - before)
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(self._process_bytes + max(0, int(line.split()[1]) * 1024 - before))
        return float(self._process_bytes)


@dataclass
class _StepRunner:
    """A strategy that takes steps on request."""

    settings: TrainSettings
    strategy: Strategy
    batches: Iterator[list[MicroBatch]]
    rank: int
    step: int = 0

    def run(self, count: int) -> tuple[list[float], float]:
        torch.set_num_threads(self.settings.threads_per_worker or 1)
        seconds, cpu = [], time.process_time()
        at = time.perf_counter()
        for _ in range(count):
            micro = next(self.batches)
            torch.manual_seed(self.step * 1009 + self.rank)
            # Nothing is learned: a measurement must not depend on earlier ones.
            self.strategy.step(micro, 0.0)
            self.step += 1
            now = time.perf_counter()
            seconds.append(now - at)
            at = now
        return seconds, time.process_time() - cpu


class _StepLosses(TrainCallback):
    """Callback that collects the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_step_end(self, progress: TrainingProgress, loss: float, point: Point | None) -> None:
        self.values.append(loss)
