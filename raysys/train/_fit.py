"""Training on the workers of the cluster, through Ray Train, with resume after failures."""

from __future__ import annotations

import json
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys import cluster
from raysys.train._loop import Epoch, Parameters, TrainSettings, run_epochs, steps_per_epoch
from raysys.train._strategies import make_replica

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ray.train import Checkpoint

    from raysys.data import Table
    from raysys.storage import Storage
    from raysys.train._task import TrainingTask

_PARAMETERS = "parameters.pt"
_HISTORY = "history.json"
_POLL_S = 1.0


@dataclass(frozen=True)
class Fitted:
    """A finished training run."""

    checkpoint: Checkpoint
    history: list[Epoch]

    def parameters(self) -> Parameters:
        """The trained module's `state_dict`, on the CPU."""
        return load_parameters(self.checkpoint)


def save_parameters(parameters: Parameters, folder: Path) -> None:
    """Write a `state_dict` where `load_parameters` finds it."""
    import torch

    torch.save(parameters, folder / _PARAMETERS)


def load_parameters(checkpoint: Checkpoint) -> Parameters:
    """The `state_dict` that a training run or a search's trial left in a checkpoint."""
    import torch

    with checkpoint.as_directory() as folder:
        return torch.load(Path(folder) / _PARAMETERS, weights_only=True, map_location="cpu")


def fit(
    name: str,
    task: TrainingTask,
    tables: Mapping[str, Table],
    settings: TrainSettings,
    storage: Storage,
) -> Fitted:
    """Train a task on `settings.workers` workers; a lost worker costs an epoch or two.

    Workers receive references and map the tables' blocks from the object store. After each
    epoch all of them write a checkpoint under the storage root; when a worker dies, Ray Train
    starts the group anew and it goes on from the last that Ray Train had taken note of.

    Args:
        name: The run's name; a second call with it goes on where the first stopped.
        task: What to train.
        tables: Given to the task's `prepare` as Arrow tables.
        settings: Strategy, workers, epochs and optimizer.
        storage: Where checkpoints are written.

    Raises:
        ResourceError: The workers do not fit on the cluster.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = cluster.resources().gpus >= settings.workers
    gpus = float(settings.workers) if gpu else 0.0
    cluster.require(f"training {name}", cpus=settings.workers, gpus=gpus)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "task": task,
            "tables": dict(tables),
            "settings": settings,
            "storage": storage,
            "progress": _progress_path(name),
        },
        scaling_config=ScalingConfig(num_workers=settings.workers, use_gpu=gpu),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=storage.uri("training"),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    with _progress(name, storage):
        result = trainer.fit()
    with result.checkpoint.as_directory() as folder:
        history = json.loads((Path(folder) / _HISTORY).read_text())
    return Fitted(checkpoint=result.checkpoint, history=history)


def _worker(config: dict[str, Any]) -> None:
    """One worker's whole run; called by Ray Train inside the process group."""
    import torch
    from ray import train

    task: TrainingTask = config["task"]
    settings: TrainSettings = config["settings"]
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = str(train.torch.get_device())
    examples = task.prepare({name: table.arrow() for name, table in config["tables"].items()})
    torch.manual_seed(settings.seed)
    steps = settings.epochs * steps_per_epoch(examples, settings)
    replica = make_replica(task.build(), settings, steps, device)

    history: list[Epoch] = []
    latest = train.get_checkpoint()
    if latest:
        with latest.as_directory() as folder:
            replica.load(Path(folder))
            history = json.loads((Path(folder) / _HISTORY).read_text())

    def report(measured: Epoch, parameters: Parameters) -> None:
        history.append(measured)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            replica.save(folder, rank)
            if rank == 0:
                save_parameters(parameters, folder)
                (folder / _HISTORY).write_text(json.dumps(history))
            # The history travels in the checkpoint; reported too, it would come back to the
            # driver as a table.
            train.report({}, checkpoint=train.Checkpoint.from_directory(temporary))
        if rank == 0:
            config["storage"].write_json(config["progress"], history)

    run_epochs(
        task,
        settings,
        replica,
        examples,
        on_epoch=report,
        first_epoch=len(history),
        rank=rank,
        world=world,
        device=device,
    )


def _progress_path(name: str) -> str:
    return f"training/{name}-progress.json"


@contextmanager
def _progress(name: str, storage: Storage) -> Iterator[None]:
    """Say each epoch in this process, when rank 0 has written it to the storage root."""
    ended = threading.Event()

    def watch() -> None:
        said = 0
        while True:
            last = ended.wait(_POLL_S)
            history = json.loads(storage.read_bytes(_progress_path(name)) or b"[]")
            for measured in history[said:]:
                text = ", ".join(f"{key} {value:.4g}" for key, value in measured.items())
                print(f"[{name}] {text}", flush=True)
            said = max(said, len(history))
            if last:
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
