"""The losses of every strategy beside those of one process, and a checkpoint spread anew.

A language model, the same seed and global batch, 100 steps in fp32. Strategies run as processes
of a gloo group, as Ray Train makes one, without a cluster: what is compared are numbers.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks._figures import Report, run
from benchmarks.train.tasks import LanguageTask, text
from raysys.storage import Storage
from raysys.train import TrainSettings
from raysys.train._checkpoint import newest
from raysys.train._run_state import RunState
from raysys.train._worker import run_worker

if TYPE_CHECKING:
    import pyarrow as pa

# ZeRO-3 changes torch.nn.functional for the rest of its process, so it comes last.
STRATEGIES = ("pipeline", "ddp", "fsdp", "zero1", "zero2", "zero3")
_STEPS = 100
_AFTER = (("zero3", 1), ("zero3", 4), ("ddp", 2))  # who reads what two ZeRO-3 workers wrote


@dataclass(frozen=True)
class _Here:
    """Stands where a Table does: rows that are in this process."""

    rows: pa.Table

    def to_arrow(self) -> pa.Table:
        return self.rows


@dataclass(frozen=True)
class _Leg:
    """A stretch of a run under one strategy; stops early for another to go on."""

    name: str
    strategy: str
    stop: int = _STEPS


class _Stopping(LanguageTask):
    """Is lost when the step after `stop` asks for its batch."""

    stop = _STEPS

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Any:
        if self.stop < 0:
            raise ConnectionResetError
        self.stop -= 1
        return super().batch(rows, rng)


def measure(report: Report, quick: bool) -> None:
    """Add the figures; quick takes fewer strategies, and fewer readers."""
    quick_ones = ("ddp", "zero3")
    legs = [_Leg(one, one) for one in (quick_ones if quick else STRATEGIES)]
    after = _AFTER[1:] if quick else _AFTER
    cut = [_Leg(f"cut-{strategy}-{world}", "zero3", _STEPS // 2) for strategy, world in after]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _together(root, 1, [_Leg("alone", "ddp")])
        _together(root, 2, [*legs, *cut])
        for strategy, world in after:
            _together(root, world, [_Leg(f"cut-{strategy}-{world}", strategy)])
        wanted = _losses(root, "alone")
        report.add("equality: loss of one process, last epoch", wanted[-1], "nats")
        for leg in legs:
            found = np.abs(_losses(root, leg.name) / wanted - 1).max()
            report.add(f"  {leg.name}, 2 workers: largest distance", found, "", below=1e-4)
        for strategy, world in after:
            found = np.abs(_losses(root, f"cut-{strategy}-{world}") / wanted - 1).max()
            name = f"  zero3 on 2, goes on as {strategy} on {world}"
            report.add(name, found, "", below=1e-4)


def _together(root: Path, world: int, legs: list[_Leg]) -> None:
    """Run the legs one after the other in as many processes."""
    mp.spawn(_worker, (world, str(root), f"{world}-{legs[0].name}", legs), nprocs=world)


def _worker(rank: int, world: int, root: str, group: str, legs: list[_Leg]) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # as Ray Train does
    store = dist.FileStore(f"{root}/{group}.store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    tables: Mapping[str, Any] = {"text": _Here(text(0.05))}
    for leg in legs:
        task = _Stopping(width=64, layers=2)
        settings = TrainSettings.model_validate({
            "strategy": leg.strategy, "num_workers": world, "batch_size": 64, "epochs": 100,
            "max_steps": _STEPS, "evaluate": False, "checkpoint_steps": _STEPS // 2,
            "precision": "fp32", "threads_per_worker": 1,
        })  # fmt: skip
        task.stop = leg.stop
        try:
            run_worker(task, tables, settings, RunState(Storage(root), leg.name), group, "cpu")
        except ConnectionResetError:
            while newest(Storage(root), f"training/{leg.name}") is None:
                time.sleep(0.05)  # until it is written
    dist.destroy_process_group()


def _losses(root: Path, name: str) -> np.ndarray:
    """Of each epoch."""
    result = RunState(Storage(root), name).read("result")
    if result is None:
        raise RuntimeError(f"{name} did not end")
    return np.array([epoch["train_loss"] for epoch in result["history"]])


if __name__ == "__main__":
    run(__doc__, measure)
