"""What a worker process does that tries one setting after another."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import socket
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import ray
import torch
import torch.distributed as dist

from raysys.errors import TrainError
from raysys.train._checkpoint import Progress
from raysys.train._loader import micro_batches, steps_per_epoch
from raysys.train._loop import evaluate, run_steps
from raysys.train.strategies._registry import make_replica

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from raysys.data import Table
    from raysys.train._settings import TrainSettings
    from raysys.train._task import Epoch, Parameters, TrainingTask
    from raysys.train.strategies._base import MicroBatch, Replica

_FIRST_STEPS = 3  # in which buffers are made and kernels chosen
_LAST_SHARE = 4  # the training loss is that of the last quarter


class Worker:
    """An actor: one rank of a process group that stays."""

    def __init__(
        self, task: TrainingTask, tables: Mapping[str, Table], rank: int, world: int, gpu: bool
    ) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": "0"}
        self._task, self._rank, self._world = task, rank, world
        self._device = "cuda:0" if gpu else "cpu"
        self._examples = task.prepare({name: table.arrow() for name, table in tables.items()})
        if self._examples < 1:
            raise TrainError(f"{type(task).__name__}.prepare found no training examples")
        self._opened: dict[int, _Opened] = {}

    def __repr__(self) -> str:  # its name in the dashboard
        return f"measure a step:{self._rank}"

    def address(self) -> str:
        """Where the others find rank 0."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def join(self, address: str) -> dict[str, Any]:
        """Enter the process group; say what this process has."""
        dist.init_process_group(
            "gloo" if self._device == "cpu" else "nccl",
            init_method=address,
            rank=self._rank,
            world_size=self._world,
        )
        self._free()
        self._bytes = psutil.Process().memory_info().rss
        return {
            "examples": self._examples,
            "bf16": self._fast_bf16(),
        }

    def leave(self) -> None:
        """Leave the process group."""
        self._opened.clear()
        dist.destroy_process_group()

    def open(self, key: int, settings: TrainSettings) -> dict[str, float]:
        """Make a replica that can take steps, and let it take its first ones."""
        self._free()
        before = self._watch_memory()
        started = time.perf_counter()
        replica = self._replica(settings)
        opened = _Opened(self._task, settings, replica, self._examples, self._rank, self._device)
        opened.steps(1)
        first = time.perf_counter() - started
        seconds, _ = opened.steps(_FIRST_STEPS)
        self._opened[key] = opened
        step = statistics.median(seconds)
        return {
            "step_s": step,
            "start_s": max(0.0, first - step),
            "memory_bytes": self._peak(before),
        }

    def steps(self, key: int, count: int) -> tuple[list[float], float]:
        """Seconds of each step, and CPU-seconds of this process in all of them."""
        return self._opened[key].steps(count)

    def close(self, key: int) -> None:
        """Forget a replica."""
        self._opened.pop(key, None)
        if not any(one.settings.compile for one in self._opened.values()):
            torch.compiler.reset()

    def train(self, settings: TrainSettings, samples: int, measure: bool) -> dict[str, float]:
        """Train from the beginning to the end of a schedule of so many samples."""
        steps = max(1, samples // settings.batch_size)
        epochs = math.ceil(steps / steps_per_epoch(self._examples, settings))
        settings = settings.model_copy(
            update={"epochs": epochs, "max_steps": steps, "evaluate": False}
        )
        self._free()
        before = self._watch_memory()
        replica = self._replica(settings)
        losses = _Losses()
        run_steps(
            self._task, settings, replica, self._examples, Progress(), losses,
            rank=self._rank, device=self._device,
        )  # fmt: skip
        last = losses.values[-max(1, len(losses.values) // _LAST_SHARE) :]
        measured = {
            "train_loss": statistics.fmean(last),
            "memory_bytes": self._peak(before),
            "samples": float(steps * min(settings.batch_size, self._examples)),
        }
        if measure:
            parameters = replica.full_parameters()
            if self._rank == 0:
                measured |= evaluate(self._task, parameters)
        return measured

    def _replica(self, settings: TrainSettings) -> Replica:
        torch.set_num_threads(settings.threads or 1)
        torch.use_deterministic_algorithms(settings.deterministic)
        torch.manual_seed(settings.seed)
        module = self._task.build()

        def example(count: int) -> Any:
            return self._task.batch(
                np.arange(count) % self._examples, np.random.default_rng(settings.seed)
            )

        return make_replica(module, settings, self._device, example)

    def _fast_bf16(self) -> bool:
        if self._device != "cpu":
            return torch.cuda.is_bf16_supported()
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        return "amx_bf16" in flags or "avx512_bf16" in flags

    def _free(self) -> None:
        """Give back what earlier replicas held, so that they do not count for the next."""
        gc.collect()
        if self._device == "cpu":
            ctypes.CDLL(None).malloc_trim(0)
        else:
            torch.cuda.empty_cache()

    def _watch_memory(self) -> int:
        """Begin a new peak; what is held now, in bytes."""
        if self._device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak of the process
        return psutil.Process().memory_info().rss

    def _peak(self, before: int) -> float:
        """Bytes that a process with this replica alone would hold at most."""
        if self._device != "cpu":
            return float(torch.cuda.max_memory_allocated() - before)
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(self._bytes + max(0, int(line.split()[1]) * 1024 - before))
        return float(self._bytes)


class _Opened:
    """A replica that takes steps when it is told to."""

    def __init__(
        self,
        task: TrainingTask,
        settings: TrainSettings,
        replica: Replica,
        examples: int,
        rank: int,
        device: str,
    ) -> None:
        self.settings, self._replica, self._rank = settings, replica, rank
        self._made: Iterator[list[MicroBatch]] = micro_batches(
            task, settings, examples, share=replica.share, steps=range(1 << 40), device=device
        )
        self._step = 0
        replica.module.train()

    def steps(self, count: int) -> tuple[list[float], float]:
        torch.set_num_threads(self.settings.threads or 1)
        seconds, cpu = [], time.process_time()
        at = time.perf_counter()
        for _ in range(count):
            micro = next(self._made)
            torch.manual_seed(self._step * 1009 + self._rank)
            # Nothing is learned: what is measured should not depend on how far it has come.
            self._replica.step(micro, 0.0)
            self._step += 1
            now = time.perf_counter()
            seconds.append(now - at)
            at = now
        return seconds, time.process_time() - cpu


class _Losses:
    """Watches a run for the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._sum = 0.0

    def on_epoch(self, measured: Epoch, parameters: Parameters) -> None:
        self.values.append(measured["last_loss"])
        self._sum = math.nan  # the step is counted

    def on_step(self, progress: Progress, point: Mapping[str, float] | None) -> None:
        if not math.isnan(self._sum):
            self.values.append(progress.loss_sum - self._sum)
        self._sum = progress.loss_sum
