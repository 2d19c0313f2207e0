"""Replicas that average gradients through PyTorch itself: DDP and FSDP."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from raysys.train.strategies._base import Plain
from raysys.train.strategies._layer_blocks import blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from raysys.train._settings import TrainSettings

_POWER_SGD_RANK = 4
_POWER_SGD_START = 10  # steps whose gradients go whole, while they change most


class Spread(Plain):
    """What the strategies with one worker a share have in common."""

    def __init__(self, module: torch.nn.Module, settings: TrainSettings, device: str) -> None:
        super().__init__(module, settings, device)
        self.share = (dist.get_rank(), dist.get_world_size())

    def _mean(self, loss: torch.Tensor) -> Callable[[], float]:
        return mean_of(loss)


def mean_of(loss: torch.Tensor) -> Callable[[], float]:
    """Begin to average a loss over the workers; what is returned waits for it.

    It travels while gradients are computed, so it costs next to nothing.
    """
    shared = loss.clone()
    arriving = dist.all_reduce(shared, async_op=True)

    def wait() -> float:
        arriving.wait()
        return float(shared) / dist.get_world_size()

    return wait


class DataParallel(Spread):
    """PyTorch DDP: whole parameters on every worker, gradients averaged during backward."""

    def __init__(self, module: torch.nn.Module, settings: TrainSettings, device: str) -> None:
        from torch.nn.parallel import DistributedDataParallel

        super().__init__(module, settings, device)
        # As views of the buckets, gradients are in memory once.
        self._ddp = DistributedDataParallel(self.inner, gradient_as_bucket_view=True)
        self.module = self._ddp
        if settings.compression == "fp16":
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

            self._ddp.register_comm_hook(None, fp16_compress_hook)
        elif settings.compression == "powersgd":
            # Vogels et al., "PowerSGD", 2019.
            from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power

            state = power.PowerSGDState(
                None,
                matrix_approximation_rank=_POWER_SGD_RANK,
                start_powerSGD_iter=_POWER_SGD_START,
            )
            self._ddp.register_comm_hook(state, power.powerSGD_hook)

    def _communicating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if last else self._ddp.no_sync()


class FullySharded(Spread):
    """PyTorch FSDP (Zhao et al., 2023): every parameter in parts, gathered layer by layer.

    Gradients are exchanged after each micro-batch: kept until the last, they would be whole on
    every worker.
    """

    def __init__(self, module: torch.nn.Module, settings: TrainSettings, device: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        super().__init__(module, settings, device)
        kind = device.partition(":")[0]
        mesh = init_device_mesh(kind, (dist.get_world_size(),))
        offload = settings.offload and kind != "cpu"
        policy = CPUOffloadPolicy() if offload else OffloadPolicy()
        for _, block in blocks(self.inner):
            fully_shard(block, mesh=mesh, offload_policy=policy)
        fully_shard(self.inner, mesh=mesh, offload_policy=policy)
