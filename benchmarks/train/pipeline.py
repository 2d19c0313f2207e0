"""A pipeline of 2 stages against one process: the same model and micro-batches, 1 thread each."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks._figures import Report, run
from benchmarks.train.tasks import LanguageModel
from raysys.train import TrainSettings
from raysys.train.pipeline._pipeline_strategy import PipelineStrategy
from raysys.train.strategies._strategy import MicroBatch, SingleDeviceStrategy

_STAGES, _MICRO = 2, 16
_LAYERS, _WIDTH, _TOKENS = 8, 256, 512
# Rows and length of a micro-batch, and rounds.
_SIZES = {True: (4, 64, 2), False: (8, 128, 5)}


def measure(report: Report, quick: bool) -> None:
    """One process alone, two that do not know of each other, two as a pipeline; in turns."""
    rows, length, _ = _SIZES[quick]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (Path(folder), quick), nprocs=_STAGES)
        seconds, losses = torch.load(Path(folder, "measured"))
    alone, two, pipeline = (statistics.median(each) for each in zip(*seconds, strict=True))
    limit = statistics.median(2 * one / both for one, both, _ in seconds)
    ratio = statistics.median(one / piped for one, _, piped in seconds)
    tokens = _MICRO * rows * length
    report.add("pipeline: one process, 1 thread", tokens / alone, "tokens/s")
    report.add("pipeline: 2 processes apart, 1 thread each", 2 * tokens / two, "tokens/s")
    report.add(f"pipeline: {_STAGES} stages, {_MICRO} micro-batches", tokens / pipeline, "tokens/s")
    report.add("pipeline: what this machine gives 2 processes over 1", limit, "times")
    busy = _MICRO / (_MICRO + _STAGES - 1)
    report.add("pipeline: that, less the waiting that 1F1B has", limit * busy, "times")
    report.add("pipeline of 2 stages over one process", ratio, "times", above=1.6)
    off = max(abs(ours / one - 1) for one, ours in zip(*losses, strict=True))
    report.add("pipeline: losses, largest relative difference", off, "", below=1e-4)


def _work(rank: int, folder: Path, quick: bool) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), _STAGES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=_STAGES)
    rows, length, rounds = _SIZES[quick]
    settings = TrainSettings(
        strategy="pipeline", num_workers=_STAGES, num_stages=_STAGES, precision="fp32",
        gradient_accumulation_steps=_MICRO, batch_size=_MICRO * rows,
    )  # fmt: skip
    plain, apart = (SingleDeviceStrategy(_model(length), settings, "cpu") for _ in range(2))
    plain.start()
    apart.start()
    micro = _micro(rows, length)
    pipeline = PipelineStrategy(_model(length), settings, "cpu", micro[0].batch)
    losses: tuple[list[float], list[float]] = ([], [])
    seconds = []
    for _ in range(rounds + 1):  # the first is not counted
        alone = _seconds(lambda: losses[0].append(plain.step(micro, 1e-3)), rank == 0)
        both = _seconds(lambda: apart.step(micro, 1e-3), True)
        piped = _seconds(lambda: losses[1].append(pipeline.step(micro, 1e-3)), True)
        seconds.append((alone, both, piped))
    if rank == 0:
        torch.save((seconds[1:], losses), folder / "measured")
    dist.destroy_process_group()


def _model(length: int) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(_TOKENS, _WIDTH, _LAYERS, length)


def _micro(rows: int, length: int) -> list[MicroBatch]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(_MICRO):
        text = torch.from_numpy(rng.integers(0, _TOKENS, (rows, length + 1)))
        made.append(MicroBatch({"text": text}, 1 / _MICRO))
    return made


def _seconds(step: Callable[[], object], mine: bool) -> float:
    """From when both processes are ready to when both are done."""
    dist.barrier()
    started = time.perf_counter()
    if mine:
        step()
    dist.barrier()
    return time.perf_counter() - started


if __name__ == "__main__":
    run(__doc__, measure)
