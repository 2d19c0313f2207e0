"""Training on the workers of the cluster, through Ray Train, from wherever it was left."""

from __future__ import annotations

import logging
import secrets
import signal
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys import cluster
from raysys.errors import TrainError
from raysys.identity import RunIdentity
from raysys.train import _checkpoint, _metrics
from raysys.train._progress import followed
from raysys.train._run_state import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ray.train import Checkpoint
    from ray.train.torch import TorchTrainer

    from raysys.data import Table
    from raysys.storage import Storage
    from raysys.train._settings import TrainSettings
    from raysys.train._task import Epoch, Parameters, TrainingTask

_PARAMETERS = "parameters.pt"
_RESIZE_S = 20.0
_log = logging.getLogger("raysys.train")


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
    returns what came out. Of two such calls at once the later one takes over. Ctrl-C ends the
    workers and leaves what the same call goes on from.

    Args:
        name: The run's name.
        task: What to train.
        tables: Given to the task's `prepare` as Arrow tables.
        settings: Strategy, workers, epochs and optimizer.
        storage: Where checkpoints are written.

    Raises:
        ResourceError: The workers do not fit on the cluster.
        TrainError: The loss is not finite or explodes, a worker needs more memory than it may
            hold, the task's own methods fail, the name is that of a run with other settings or
            examples, another call has taken the run over, or it failed too often.
        StorageError: The storage root cannot be written to.
    """
    record = Record(storage, name)
    newest = _checkpoint.newest(storage, record.folder)
    if newest:
        identity = RunIdentity(settings.trajectory)
        identity.claim(storage, record.folder, f"training {name!r}", error=TrainError)
    if done := record.read("done"):
        return Fitted(record, done["history"])
    if not newest:
        record.remove("progress")  # of a run that did not come to its first checkpoint
    with followed(record, tables, settings, _checkpoint.step_of(newest)) as tracked:
        result = record.read("result")
        if result is None:
            result = _run(record, task, tables, settings)
        tracked.update(result)
    # Only now: a driver that dies before ends the tracked run and tidies when it is back.
    _checkpoint.keep_newest(storage, record.folder)
    record.tidy()
    record.write("done", result)
    return Fitted(record, result["history"])


def _run(
    record: Record, task: TrainingTask, tables: Mapping[str, Table], settings: TrainSettings
) -> dict[str, Any]:
    """Let Ray Train's workers come to the end; what rank 0 wrote then."""
    submission = secrets.token_hex(4)
    trainer = _trainer(record, task, tables, settings, submission)
    record.write("plan", {"settings": settings.model_dump(), "submission": submission})
    RunIdentity(settings.trajectory).write(record.storage, record.folder)
    try:
        with _interruptible():
            trainer.fit()
    except Exception as error:
        failure = _told(record, submission)
        _metrics.failed(record.name, _reason(failure))
        _log.info("training %s ends, max_failures=%d", record.name, settings.max_failures)
        raise failure or TrainError(
            f"training {record.name} gave up after max_failures={settings.max_failures} failures; "
            f"the last: {error}. The same call goes on from the newest checkpoint"
        ) from error
    finally:
        with suppress(OSError):
            record.storage.remove(f"{record.folder}/ray/{record.name}-{submission}")
    if failure := _told(record, submission):
        _metrics.failed(record.name, _reason(failure))
        raise failure
    # `done` if another call had taken the run over and brought it to its end.
    result = record.read("result") or record.read("done")
    assert result is not None
    return result


def _reason(failure: TrainError | None) -> str:
    """Of a run's end, for the metrics: only a step that cannot be taken has a number."""
    return "not_finite" if failure and failure.step is not None else "error"


def _told(record: Record, submission: str) -> TrainError | None:
    """The error of a worker that would come again, with what its remedies mean for the name."""
    failure = record.failure(submission)
    if failure and failure.step and _checkpoint.newest(record.storage, record.folder):
        return TrainError(
            f"{failure}. Other settings need another name, or remove "
            f"{record.storage.uri(record.folder)}",
            step=failure.step,
            layer=failure.layer,
        )
    return failure


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make Ctrl-C what it is elsewhere; Ray Train takes it, exits, and would keep it for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:
            raise
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, before)


def _trainer(
    record: Record,
    task: TrainingTask,
    tables: Mapping[str, Table],
    settings: TrainSettings,
    submission: str,
) -> TorchTrainer:
    """Ray Train's trainer for a submission."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    least = settings.min_workers or settings.workers
    gpu = cluster.limits().gpus >= least
    threads = settings.threads or 1
    cluster.require(
        f"training {record.name}", cpus=least * threads, gpus=float(least) if gpu else 0.0
    )
    elastic = (least, settings.workers) if settings.min_workers else settings.workers
    return TorchTrainer(
        _run_worker,
        train_loop_config={
            "task": task,
            # Here and once: a worker that is started anew finds the blocks.
            "tables": {key: table.materialize() for key, table in tables.items()},
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


def _run_worker(config: dict[str, Any]) -> None:
    """Called by Ray Train in each worker, inside the process group."""
    from ray import train

    from raysys.train._worker import work

    work(**config, device=str(train.torch.get_device()))
