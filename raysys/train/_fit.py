"""Training on the workers of the cluster, through Ray Train, from wherever it was left."""

from __future__ import annotations

import secrets
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys import cluster, tracking
from raysys.errors import TrainError
from raysys.train._record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ray.train import Checkpoint

    from raysys.data import Table
    from raysys.storage import Storage
    from raysys.train._settings import TrainSettings
    from raysys.train._task import Epoch, Parameters, TrainingTask

_PARAMETERS = "parameters.pt"
_POLL_S = 1.0
_RESIZE_S = 20.0


@dataclass(frozen=True)
class Fitted:
    """A finished training run.

    Attributes:
        record: Its files.
        history: What each epoch measured.
    """

    record: Record
    history: list[Epoch]

    def parameters(self) -> Parameters:
        """The trained module's `state_dict`, on the CPU."""
        from raysys.train import _checkpoint

        storage, folder = self.record.storage, self.record.folder
        name = _checkpoint.newest(storage, folder)
        done = self.record.read("done")
        if name is None or done is None:
            raise TrainError(f"no finished run under {storage.uri(folder)}: train it")
        with _checkpoint.opened(storage, folder, name) as saved:
            found = {key: value.clone() for key, value in saved.parameters().items()}
        return found | {second: found[first] for second, first in done["aliases"].items()}


def save_parameters(parameters: Parameters, folder: Path) -> None:
    """Write a `state_dict` where `load_parameters` finds it."""
    import torch

    torch.save(parameters, folder / _PARAMETERS)


def load_parameters(checkpoint: Checkpoint) -> Parameters:
    """The `state_dict` that a search's trial left in its checkpoint."""
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
    """Train a task on `settings.workers` workers, from wherever a run of this name was left.

    Workers receive references and map the tables' blocks from the object store. They write
    checkpoints in the background; when one of them or its node is lost, Ray Train starts the
    group anew and it goes on from the newest. The same call after the driver was lost, or with
    another strategy or number of workers, goes on from there too; after the run has finished it
    returns what came out.

    Args:
        name: The run's name.
        task: What to train.
        tables: Given to the task's `prepare` as Arrow tables.
        settings: Strategy, workers, epochs and optimizer.
        storage: Where checkpoints are written.

    Raises:
        ResourceError: The workers do not fit on the cluster.
        TrainError: The loss is not finite or explodes, a worker needs more memory than it may
            hold, the task's own methods fail, or the name is that of a run with other settings.
    """
    record = Record(storage, name)
    _check_same(record, settings)
    done = record.read("done")
    if done:
        return Fitted(record, done["history"])
    trainer, submission = _trainer(record, task, tables, settings)
    record.write("plan", {"trajectory": settings.trajectory, "settings": settings.model_dump()})
    with _followed(record, tables, settings) as tracked:
        try:
            trainer.fit()
        except Exception as error:
            raise record.failure(submission) or TrainError(
                f"training {name} gave up after max_failures={settings.max_failures} failures; the "
                f"last: {error}. The same call goes on from the newest checkpoint"
            ) from error
        if failure := record.failure(submission):
            raise failure
        done = record.read("done")
        assert done is not None
        tracked.update(done)
    return Fitted(record, done["history"])


def _trainer(
    record: Record, task: TrainingTask, tables: Mapping[str, Table], settings: TrainSettings
) -> tuple[Any, str]:
    """Ray Train's trainer for a submission, and the submission's name."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    least = settings.min_workers or settings.workers
    gpu = cluster.resources().gpus >= least
    threads = settings.threads or 1
    cluster.require(
        f"training {record.name}", cpus=least * threads, gpus=float(least) if gpu else 0.0
    )
    submission = secrets.token_hex(4)
    elastic = (least, settings.workers) if settings.min_workers else settings.workers
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config={
            "task": task,
            "tables": dict(tables),
            "settings": settings,
            "record": record,
            "submission": submission,
        },
        scaling_config=ScalingConfig(
            num_workers=elastic,
            use_gpu=gpu,
            resources_per_worker={"CPU": threads, **({"GPU": 1} if gpu else {})},
            elastic_resize_monitor_interval_s=_RESIZE_S,
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            name=f"{record.name}-{submission}",
            storage_path=record.storage.uri(f"{record.folder}/ray"),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )
    return trainer, submission


def _run_worker(config: dict[str, Any]) -> None:
    """Called by Ray Train in each worker, inside the process group."""
    from ray import train

    from raysys.train._worker import work

    work(**config, device=str(train.torch.get_device()))


def _check_same(record: Record, settings: TrainSettings) -> None:
    """Refuse to go on with other settings than those that decided the steps so far."""
    before = record.read("plan")
    if before is None:
        return
    was, now = before["trajectory"], settings.trajectory
    changed = [
        f"{key} {was.get(key)!r}, now {now[key]!r}" for key in now if was.get(key) != now[key]
    ]
    if changed:
        raise TrainError(
            f"run {record.name!r} was started with {'; '.join(changed)}: give another name, the "
            f"settings that it had, or remove {record.storage.uri(record.folder)}"
        )


@contextmanager
def _followed(
    record: Record, tables: Mapping[str, Table], settings: TrainSettings
) -> Iterator[dict[str, Any]]:
    """Say each epoch and track the run, from what rank 0 writes; in a thread of this process."""
    ended = threading.Event()
    result: dict[str, Any] = {}
    earlier = record.read("progress")

    def follow() -> None:
        tracked: tracking.TrackedRun | None = None
        said, step = len(earlier["history"]) if earlier else 0, 0.0
        if earlier:
            print(f"[{record.name}] goes on after step {earlier['step']}", flush=True)
        while True:
            last = ended.wait(_POLL_S)
            progress = record.read("progress")
            if progress and progress != earlier:
                for measured in progress["history"][said:]:
                    text = ", ".join(f"{key} {value:.4g}" for key, value in measured.items())
                    print(f"[{record.name}] {text}", flush=True)
                said = max(said, len(progress["history"]))
                # Only now: opening a database would make the workers' start slower.
                tracked = tracked or tracking.open_run(
                    record.storage, "training", record.name, settings=settings.model_dump()
                )
                for point in progress["points"]:
                    if point["step"] > step:
                        step = point["step"]
                        rest = {key: value for key, value in point.items() if key != "step"}
                        tracked.log(rest, step=int(step))
            if last:
                break
        if tracked is None:
            return
        for measured in result.get("history", []):
            rest = {key: value for key, value in measured.items() if key not in ("epoch", "step")}
            tracked.log(rest, step=int(measured["step"]))
        finals = result["history"][-1] if result else {}
        tracked.end("FINISHED" if result else "FAILED", finals)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield result
    finally:
        ended.set()
        follower.join()
