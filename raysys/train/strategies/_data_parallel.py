"""DDP and FSDP: strategies that average gradients through PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from raysys.train._module import sparse_parameters
from raysys.train.strategies._layer_blocks import blocks
from raysys.train.strategies._strategy import SingleDeviceStrategy
from raysys.train.strategies._unused_parameters import reached_parameters, zero_term

if TYPE_CHECKING:
    from raysys.train._settings import TrainSettings

_POWER_SGD_RANK = 4
_POWER_SGD_START = 10  # first steps without compression, while gradients change fastest


class DataParallelStrategy(SingleDeviceStrategy):
    """Base of the strategies with one data shard per worker."""

    def __init__(self, module: torch.nn.Module, settings: TrainSettings, device: str) -> None:
        super().__init__(module, settings, device)
        self.data_shard = (dist.get_rank(), dist.get_world_size())

    def _last_loss(
        self, loss: torch.Tensor, total: torch.Tensor
    ) -> tuple[torch.Tensor, Callable[[], float]]:
        means = mean_over_workers(total.unsqueeze(0))
        return loss, lambda: float(means())


def mean_over_workers(values: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin to average values over the workers; returns a function that waits for them.

    They travel while gradients are computed, so they cost next to nothing.
    """
    shared = values.clone()
    work = dist.all_reduce(shared, async_op=True)

    def wait() -> torch.Tensor:
        work.wait()
        return shared / dist.get_world_size()

    return wait


class DDPStrategy(DataParallelStrategy):
    """PyTorch DDP: full parameters on every worker, gradients averaged during backward.

    A parameter that the step of one worker does not use counts with a gradient of zeros; one that
    no worker uses stays as it is. DDP's own `find_unused_parameters` takes longer, and rejects
    activation checkpoints of PyTorch's older kind.
    """

    def __init__(self, module: torch.nn.Module, settings: TrainSettings, device: str) -> None:
        super().__init__(module, settings, device)
        # As views of the buckets, gradients are in memory once.
        self._ddp = DistributedDataParallel(self.inner, gradient_as_bucket_view=True)
        self.module = self._ddp
        self._trained = [p for p in self.inner.parameters() if p.requires_grad]
        self._sparse = {id(p) for p in sparse_parameters(self.inner).values()}
        if settings.gradient_compression == "fp16":
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

            self._ddp.register_comm_hook(None, fp16_compress_hook)
        elif settings.gradient_compression == "powersgd":
            # Vogels et al., "PowerSGD", 2019.
            from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

            state = powerSGD_hook.PowerSGDState(
                None,
                matrix_approximation_rank=_POWER_SGD_RANK,
                start_powerSGD_iter=_POWER_SGD_START,
            )
            self._ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)

    def _last_loss(
        self, loss: torch.Tensor, total: torch.Tensor
    ) -> tuple[torch.Tensor, Callable[[], float]]:
        used = []
        for parameter, reached in zip(
            self._trained, reached_parameters(loss, self._trained), strict=True
        ):
            if not reached:
                loss = loss + zero_term(parameter, sparse=id(parameter) in self._sparse)
            used.append(reached or parameter.grad is not None)  # by an earlier micro-batch
        flags = torch.tensor(used, dtype=total.dtype, device=total.device)
        means = mean_over_workers(torch.cat([total.view(1), flags]))

        def wait() -> float:
            mean, *shares = means().tolist()
            for parameter, share in zip(self._trained, shares, strict=True):
                if share == 0:
                    parameter.grad = None
            return float(mean)

        return loss, wait

    def _synchronizing(self, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if last else self._ddp.no_sync()


class FSDPStrategy(DataParallelStrategy):
    """PyTorch FSDP (Zhao et al., 2023): every parameter sharded, gathered layer by layer.

    Gradients are exchanged after each micro-batch: accumulated until the last, they would be
    unsharded on every worker.
    """

    def __init__(self, module: torch.nn.Module, settings: TrainSettings, device: str) -> None:
        super().__init__(module, settings, device)
        kind = device.partition(":")[0]
        mesh = init_device_mesh(kind, (dist.get_world_size(),))
        policy = CPUOffloadPolicy() if self.offloads else OffloadPolicy()
        for _, block in blocks(self.inner):
            fully_shard(block, mesh=mesh, offload_policy=policy)
        fully_shard(self.inner, mesh=mesh, offload_policy=policy)
