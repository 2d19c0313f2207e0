"""Replicas of a module that share their gradients: DDP and DeepSpeed's ZeRO."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from raysys.errors import StorageError
from raysys.train._loop import Plain, optimizer_and_schedule

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from raysys.train._loop import TrainSettings


class DataParallel(Plain):
    """PyTorch DDP: whole parameters on every worker, gradients averaged during backward."""

    def __init__(
        self, module: torch.nn.Module, settings: TrainSettings, steps: int, device: str
    ) -> None:
        from torch.nn.parallel import DistributedDataParallel

        super().__init__(module.to(device), settings, steps)
        self._inner = self.module
        self.module = DistributedDataParallel(self.module)

    def full_parameters(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().cpu() for name, value in self._inner.state_dict().items()}

    def save(self, folder: Path, rank: int) -> None:
        """Write what `load` needs; one worker's copy is every worker's."""
        import torch

        if rank == 0:
            state = {
                "module": self._inner.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
            }
            torch.save(state, folder / "state.pt")

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        import torch

        state = torch.load(folder / "state.pt", weights_only=True)
        self._inner.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


class Zero:
    """DeepSpeed ZeRO (Rajbhandari et al., 2020): state sharded over the workers.

    Stage 1 shards the optimizer's state, stage 2 the gradients too, stage 3 the parameters.
    """

    _TAG = "zero"

    def __init__(
        self, module: torch.nn.Module, settings: TrainSettings, steps: int, device: str, stage: int
    ) -> None:
        # DeepSpeed chooses its accelerator once, on import.
        os.environ["DS_ACCELERATOR"] = "cuda" if device.startswith("cuda") else "cpu"
        import deepspeed

        self._deepspeed, self._stage = deepspeed, stage
        optimizer, schedule = optimizer_and_schedule(module, settings, steps)
        config: dict[str, Any] = {
            "train_batch_size": settings.batch_size // settings.workers * settings.workers,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,  # its default of 1 would train something else than DDP
            "zero_optimization": {"stage": stage},
            # AdamW of PyTorch: DeepSpeed's own Adam is compiled on first use.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        self.module, _, _, _ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            lr_scheduler=schedule,
            config=config,
            dist_init_required=False,
        )

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        loss = self.module(**batch)
        self.module.backward(loss)
        self.module.step()
        return float(loss.detach())

    def full_parameters(self) -> dict[str, torch.Tensor]:
        inner = self.module.module
        gather = (
            self._deepspeed.zero.GatheredParameters(list(inner.parameters()))
            if self._stage == 3
            else nullcontext()
        )
        with gather:
            return {
                name: value.detach().cpu().clone() for name, value in inner.state_dict().items()
            }

    def save(self, folder: Path, rank: int) -> None:
        """Write this worker's shard; all workers' files together make the checkpoint."""
        self.module.save_checkpoint(str(folder), tag=self._TAG)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint of as many workers."""
        loaded, _ = self.module.load_checkpoint(str(folder), tag=self._TAG)
        if loaded is None:
            raise StorageError(f"DeepSpeed finds no checkpoint of this worker in {folder}")


def make_replica(
    module: torch.nn.Module, settings: TrainSettings, steps: int, device: str
) -> DataParallel | Zero:
    """Spread a module as the settings' strategy says."""
    if settings.strategy == "ddp":
        return DataParallel(module, settings, steps, device)
    return Zero(module, settings, steps, device, stage=int(settings.strategy[-1]))
