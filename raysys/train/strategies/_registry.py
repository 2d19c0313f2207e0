"""Strategies by name."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING

import numpy as np

from raysys.train._failures import task_errors
from raysys.train._module import check_sparse
from raysys.train.strategies._data_parallel import DDPStrategy, FSDPStrategy
from raysys.train.strategies._layer_blocks import apply_activation_checkpointing

if TYPE_CHECKING:
    import torch

    from raysys.train._settings import TrainSettings
    from raysys.train._task import TrainingTask
    from raysys.train.strategies._strategy import Strategy


def make_strategy(
    task: TrainingTask, module: torch.nn.Module, settings: TrainSettings, device: str, examples: int
) -> Strategy:
    """Spread a task's module over the workers; called by all of them, with the same module.

    A pipeline looks at a batch of the task, which is prepared with `examples` training examples.

    Raises:
        TrainError: The strategy cannot train the module.
    """
    check_sparse(module, settings, settings.strategy)
    name = settings.strategy
    if name != "ddp":
        _return_freed_memory()
    if name == "pipeline":
        from raysys.train.pipeline._pipeline_strategy import PipelineStrategy

        replica_batch = settings.batch_size * settings.num_stages // settings.num_workers
        micro_batch = replica_batch // settings.gradient_accumulation_steps
        with task_errors(task, "batch"):
            example = task.batch(np.arange(micro_batch) % examples, np.random.default_rng(0))
        return PipelineStrategy(module, settings, device, example)
    if settings.activation_checkpointing:
        apply_activation_checkpointing(module)
    if settings.compile:
        module.compile()
    if name.startswith("zero"):
        from raysys.train.strategies._zero import ZeroStrategy

        return ZeroStrategy(module, settings, device, stage=int(name[-1]))
    strategy = (DDPStrategy if name == "ddp" else FSDPStrategy)(module, settings, device)
    strategy.start()
    return strategy


def _return_freed_memory() -> None:
    """Make the C library return freed memory to the system, for strategies that save memory.

    Otherwise it learns to keep blocks of up to 32 MiB, and a worker that has taken its module
    apart keeps the memory of the whole.
    """
    m_mmap_threshold, threshold_bytes = -3, 128 << 10
    with contextlib.suppress(AttributeError, OSError):  # not in every C library
        ctypes.CDLL(None).mallopt(m_mmap_threshold, threshold_bytes)
