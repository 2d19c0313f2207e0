"""Peak memory of a worker under each strategy, and a model that a worker's limit refuses.

100 million parameters with Adam on two workers. The peak is of the resident memory that is the
process's own, sampled during the run; what Ray maps from its object store is not counted.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from torch import nn

from benchmarks._figures import Report, run
from benchmarks.train.tasks import LanguageTask, text
from raysys import cluster, train
from raysys.data import Table
from raysys.errors import TrainError
from raysys.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

_EVERY_S = 0.02


@dataclass
class Weighed(LanguageTask):
    """Notes the peak of its process's own memory."""

    folder: Path = Path()

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        threading.Thread(target=self._watch, daemon=True).start()
        return super().prepare(tables)

    def build(self) -> nn.Module:
        return super().build()

    def _watch(self) -> None:
        process, peak = psutil.Process(), 0
        file = self.folder / f"{process.pid}.peak"
        while True:
            info = process.memory_info()
            if info.rss - info.shared > peak:
                peak = info.rss - info.shared
                file.write_text(str(peak))
            time.sleep(_EVERY_S)


def measure(report: Report, quick: bool) -> None:
    """Add the figures."""
    cluster.connect()
    table = Table.load(lambda: text()).materialize()
    size = {"width": 768, "layers": 14} if not quick else {"width": 512, "layers": 8}
    parameters = _count(size)
    report.add("parameters", parameters / 1e6, "million")
    task = LanguageTask(**size)
    peaks: dict[str, int] = {}
    for strategy in ("ddp", "fsdp", "zero1", "zero2", "zero3", "pipeline"):
        if quick and strategy in ("fsdp", "zero1", "zero2"):
            continue
        settings = _settings(strategy)
        peaks[strategy] = _peak(size, table, settings)
        report.add(f"peak memory a worker, {strategy}", peaks[strategy] / 1e9, "GB")
        plan = train.plan(task, {"text": table}, settings, memory_limit_bytes=1 << 40)
        estimated = next(e for e in plan.estimates if e.strategy == strategy)
        report.add(
            f"estimate of plan over that, {strategy}",
            estimated.memory_bytes / peaks[strategy],
            "ratio",
        )
    ratio = peaks["zero3"] / peaks["ddp"]
    report.add("peak memory, ZeRO-3 over DDP", ratio, "ratio", below=None if quick else 0.62)
    limit = int(peaks["zero3"] + 0.6 * (peaks["ddp"] - peaks["zero3"]))
    report.add("a worker's limit", limit / 1e9, "GB")
    for strategy, wanted in (("ddp", 0), ("zero3", 1), ("pipeline", 1)):
        with tempfile.TemporaryDirectory() as folder:
            settings = _settings(strategy).model_copy(update={"memory_limit_bytes": limit})
            try:
                train.fit("limited", task, {"text": table}, settings, Storage(folder))
                trains = 1
            except TrainError as error:
                print(f"{strategy}: {error}", flush=True)
                trains = 0
        bar = {"above": 0.5} if wanted else {"below": 0.5}
        report.add(f"trains under the limit: {strategy}", trains, "runs", **bar)


def _settings(strategy: str) -> train.TrainSettings:
    return train.TrainSettings.model_validate({
        "strategy": strategy, "batch_size": 8, "max_steps": 3, "epochs": 1, "evaluate": False,
        "gradient_accumulation_steps": 2, "checkpoint_steps": 1000,
    })  # fmt: skip


def _count(size: dict[str, int]) -> int:
    with torch.device("meta"):
        return sum(one.numel() for one in LanguageTask(**size).build().parameters())


def _peak(size: dict[str, int], table: Table, settings: train.TrainSettings) -> int:
    with tempfile.TemporaryDirectory() as folder:
        task = Weighed(**size, folder=Path(folder))
        train.fit("weighed", task, {"text": table}, settings, Storage(folder))
        return int(np.max([int(file.read_text()) for file in Path(folder).glob("*.peak")]))


if __name__ == "__main__":
    run(__doc__, measure)
