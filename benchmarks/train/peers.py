"""The same training as one writes it by hand: DDP under torchrun, and a bare TorchTrainer."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from raysys.train import TrainingTask, TrainSettings


def train_by_hand(
    task: TrainingTask,
    tables: dict[str, pa.Table],
    settings: TrainSettings,
    wrap: Any,
    rank: int,
    world: int,
) -> None:
    """The loop of PyTorch's tutorials: AdamW and a schedule around a wrapped module."""
    import torch

    examples = task.prepare(tables)
    torch.manual_seed(settings.seed)
    module = wrap(task.build())
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    steps = settings.max_steps or 0
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    an_epoch = max(1, examples // settings.batch_size)
    order: np.ndarray = np.empty(0)
    total = 0.0
    for step in range(steps):
        epoch, within = divmod(step, an_epoch)
        if within == 0:
            order = np.random.default_rng([settings.seed, epoch]).permutation(examples)
        rows = order[within * settings.batch_size : (within + 1) * settings.batch_size][rank::world]
        loss = module(**task.batch(rows, np.random.default_rng([settings.seed, epoch, within])))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        total += float(loss.detach())


def torchrun_worker(file: Path) -> None:
    """What `torchrun` starts in each process."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    task, tables, settings = pickle.loads(file.read_bytes())
    train_by_hand(
        task, tables, settings, DistributedDataParallel, dist.get_rank(), dist.get_world_size()
    )
    dist.destroy_process_group()


def bare_trainer(
    task: TrainingTask, tables: dict[str, Any], settings: TrainSettings, folder: Path
) -> None:
    """Ray Train's TorchTrainer with nothing around it."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        _bare_worker,
        train_loop_config={"task": task, "tables": tables, "settings": settings},
        scaling_config=ScalingConfig(num_workers=settings.num_workers),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(name="bare", storage_path=str(folder)),
    )
    trainer.fit()


def _bare_worker(config: dict[str, Any]) -> None:
    import ray
    from ray import train

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        return train.torch.prepare_model(module)

    context = train.get_context()
    tables = {name: ray.get(ref) for name, ref in config["tables"].items()}
    train_by_hand(
        config["task"], tables, config["settings"], wrap, context.get_world_rank(),
        context.get_world_size(),
    )  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torchrun_worker(Path(sys.argv[1]))
