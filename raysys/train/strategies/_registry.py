"""Strategies by name."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from raysys.train._settings import TrainSettings
    from raysys.train._task import Batch
    from raysys.train.strategies._base import Replica


def make_replica(
    module: torch.nn.Module,
    settings: TrainSettings,
    device: str,
    example: Callable[[int], Batch],
) -> Replica:
    """Spread a module over the workers as the settings say; called by all of them together.

    Args:
        module: The same on every worker.
        settings: Strategy and what it needs.
        device: Of this worker.
        example: Makes a batch of so many examples.
    """
    strategy = settings.strategy
    if strategy != "ddp":
        _give_memory_back()
    if strategy == "pipeline":
        from raysys.train.pipeline._strategy import Pipeline

        share = settings.batch_size * settings.stages // settings.workers
        return Pipeline(module, settings, device, example(share // settings.accumulate))
    if settings.checkpoint_activations:
        from raysys.train.strategies._layer_blocks import checkpoint_activations

        checkpoint_activations(module)
    if settings.compile:
        module.compile()
    if strategy.startswith("zero"):
        from raysys.train.strategies._zero import Zero

        return Zero(module, settings, device, stage=int(strategy[-1]))
    from raysys.train.strategies._data_parallel import DataParallel, FullySharded

    replica = (DataParallel if strategy == "ddp" else FullySharded)(module, settings, device)
    replica.start()
    return replica


def _give_memory_back() -> None:
    """Make the C library return what is freed to the system, for strategies that save memory.

    Otherwise it learns to keep blocks of up to 32 MiB, and a worker that has taken its module to
    pieces goes on holding the memory of the whole.
    """
    m_mmap_threshold, least = -3, 128 << 10
    with contextlib.suppress(AttributeError, OSError):  # not of every C library
        ctypes.CDLL(None).mallopt(m_mmap_threshold, least)
