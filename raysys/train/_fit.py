"""Training on the workers of the cluster through Ray Train, resumed from the newest checkpoint."""

from __future__ import annotations

import copy
import logging
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys import cluster
from raysys.arguments import checked
from raysys.console import say, text_table
from raysys.errors import TrainError
from raysys.identity import RunIdentity, digest
from raysys.imports import lazy_import
from raysys.telemetry import metrics
from raysys.train import _checkpoint
from raysys.train._module_file import read_module
from raysys.train._progress import reported_progress
from raysys.train._run_state import RunState
from raysys.train._settings import GPU_BACKEND, TrainSettings

if TYPE_CHECKING:
    from ray.train import Checkpoint
    from ray.train.torch import TorchTrainer
    from torch.nn import Module

    from raysys.data import Table
    from raysys.storage import Storage
    from raysys.train._task import EpochMetrics, StateDict, TrainingTask

torch = lazy_import("torch")
ray_train = lazy_import("ray.train")
ray_train_torch = lazy_import("ray.train.torch")
elastic = lazy_import("raysys.ray_internals.elastic")

_PARAMETERS = "parameters.pt"
_RESIZE_S = 20.0
_log = logging.getLogger("raysys.train")


@dataclass(frozen=True)
class FitResult:
    """A finished training run.

    Attributes:
        state: Files of the run.
        history: Metrics of each epoch; `workers` is their number at its end.
    """

    state: RunState
    history: list[EpochMetrics]

    def state_dict(self) -> StateDict:
        """The trained module's `state_dict`, on the CPU."""
        storage, folder = self.state.storage, self.state.folder
        name = _checkpoint.newest(storage, folder)
        done = self.state.read("done")
        if name is None or done is None:
            raise TrainError(f"no finished run under {storage.uri(folder)}: train it")
        with _checkpoint.opened(storage, folder, name) as saved:
            parameters = copy.deepcopy(saved.state_dict())
        return parameters | {alias: parameters[name] for alias, name in done["aliases"].items()}

    def module(self) -> Module:
        """The trained module in evaluation mode, on the CPU.

        Raises:
            TrainError: The run is not finished, or the task's module cannot be pickled.
        """
        module = read_module(self.state, self.state_dict())
        if module is None:
            raise TrainError(
                f"the module of run {self.state.name!r} could not be pickled: build it, and call "
                "its load_state_dict(result.state_dict())"
            )
        return module

    def __repr__(self) -> str:
        last = ", ".join(f"{name}={value:.4g}" for name, value in self.history[-1].items())
        return f"FitResult({self.state.name!r}, {last})"

    def __str__(self) -> str:
        """The metrics of all epochs, as a table."""
        names, nan = list(self.history[-1]), float("nan")
        rows = [[f"{epoch.get(name, nan):.4g}" for name in names] for epoch in self.history]
        return text_table([f">{name}" for name in names], rows)


def save_state_dict(parameters: StateDict, folder: Path) -> None:
    """Write a `state_dict` for `load_state_dict`."""
    torch.save(parameters, folder / _PARAMETERS)


def load_state_dict(checkpoint: Checkpoint) -> StateDict:
    """The `state_dict` in the checkpoint of a search's trial."""
    with checkpoint.as_directory() as folder:
        return torch.load(Path(folder) / _PARAMETERS, weights_only=True, map_location="cpu")


@checked
def fit(
    name: str,
    task: TrainingTask,
    tables: Mapping[str, Table],
    settings: TrainSettings,
    storage: Storage,
) -> FitResult:
    """Train a task on `settings.num_workers` workers, from the newest checkpoint of this name.

    Workers receive references and map the tables' blocks from the object store. They write
    checkpoints in the background; when a worker or its node is lost, Ray Train restarts the group,
    which resumes from the newest. With `min_workers` it starts with the workers that fit, and again
    when there was room for more during 20 s. The same call resumes too after its driver was lost,
    also with another strategy or number of workers; of a finished run it returns the result. Of two
    such calls at once the later one takes over. Ctrl-C ends the workers; the same call resumes.

    Args:
        name: Name of the run.
        task: Task to train.
        tables: Tables for the task's `prepare`, which receives them as Arrow tables.
        settings: Strategy, workers, epochs and optimizer.
        storage: Storage for checkpoints.

    Raises:
        ResourceError: The workers do not fit on the cluster.
        TrainError: The loss or the gradient is not finite or too large, a worker exceeds its
            memory limit, the task's own methods fail, a run of this name has other settings,
            another task or other tables, another call has taken the run over, or it failed too
            often.
        StorageError: The storage root cannot be written to.
    """
    state = RunState(storage, name)
    newest = _checkpoint.newest(storage, state.folder)
    identity = RunIdentity(
        {
            **settings.identity_facts,
            "task": f"{type(task).__qualname__} {digest(task, strict=False)}",
            "tables": {key: table.fingerprint() for key, table in tables.items()},
        }
    )
    if newest:
        identity.claim(storage, state.folder, f"training {name!r}", error=TrainError)
    if done := state.read("done"):
        return FitResult(state, done["history"])
    if not newest:
        state.remove("progress")  # of a run that ended before its first checkpoint
    with reported_progress(state, tables, settings, _checkpoint.step_of(newest)) as reported:
        result = state.read("result")
        if result is None:
            result = _run(state, task, tables, settings, identity)
        reported.update(result)
    # Last: a driver that dies before this ends the tracked run and cleans up when it is back.
    _checkpoint.keep_newest(storage, state.folder)
    state.clean_up()
    state.write("done", result)
    return FitResult(state, result["history"])


def _run(
    state: RunState, task: TrainingTask, tables: Mapping[str, Table], settings: TrainSettings,
    identity: RunIdentity,
) -> dict[str, Any]:  # fmt: skip
    """Train to the end with Ray Train; returns the result that rank 0 wrote."""
    submission = secrets.token_hex(4)
    trainer = _trainer(state, task, tables, settings, submission)
    state.write("plan", {"settings": settings.model_dump(), "submission": submission})
    identity.write(state.storage, state.folder)
    cause: Exception | None = None
    try:
        with _interruptible():
            trainer.fit()
    except Exception as error:
        cause = error
    finally:
        with suppress(OSError):
            state.storage.remove(f"{state.folder}/ray/{state.name}-{submission}")
    failure = state.failure(submission)
    if failure or cause:
        # Only a step that cannot be taken has a number.
        reason = "not_finite" if failure and failure.step is not None else "error"
        metrics.TRAIN_FAILURES.inc(1, {"run": state.name, "reason": reason})
        _log.info("training %s ends, max_failures=%d", state.name, settings.max_failures)
        if failure and failure.step and _checkpoint.newest(state.storage, state.folder):
            failure = TrainError(
                f"{failure}. Other settings need another name, or remove "
                f"{state.storage.uri(state.folder)}",
                step=failure.step,
                layer=failure.layer,
            )
        raise failure or TrainError(
            f"training {state.name} failed more than max_failures={settings.max_failures} times; "
            f"the last failure: {cause}. The same call resumes from the newest checkpoint"
        ) from cause
    # `done` if another call had taken the run over and finished it.
    result = state.read("result") or state.read("done")
    assert result is not None
    return result


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make Ctrl-C raise KeyboardInterrupt; Ray Train replaces the handler, and exits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if error.code in (signal.SIGTERM, 128 + signal.SIGTERM):
            raise
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, before)


def _trainer(
    state: RunState, task: TrainingTask, tables: Mapping[str, Table], settings: TrainSettings,
    submission: str,
) -> TorchTrainer:  # fmt: skip
    """Ray Train's trainer for a submission."""
    min_workers = settings.min_workers or settings.num_workers
    limits = cluster.limits()
    gpus = 1 if limits.gpus >= min_workers else 0
    threads = settings.threads_per_worker or 1
    cluster.require(
        f"training {state.name}", cpus=min_workers * threads, gpus=float(min_workers * gpus)
    )
    if settings.cpu_offload and not gpus:
        say(f"[{state.name}] cpu_offload has no effect: its workers have no GPUs")
    # The limits are lower in a trial of a search, to which a part of the cluster is reserved.
    most_workers = min(settings.num_workers, int(limits.cpus // threads))
    if gpus:
        most_workers = min(most_workers, int(limits.gpus))
    return elastic.ElasticTrainer(
        _run_worker,
        train_loop_config={
            "task": task, "settings": settings, "state": state, "submission": submission,
            # Computed once, in this process: a restarted worker finds the blocks.
            "tables": {key: table.materialize() for key, table in tables.items()},
        },
        scaling_config=ray_train.ScalingConfig(
            num_workers=(min_workers, most_workers) if min_workers < most_workers else most_workers,
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": threads} | ({"GPU": gpus} if gpus else {}),
            elastic_resize_monitor_interval_s=_RESIZE_S,
        ),
        torch_config=ray_train_torch.TorchConfig(backend=GPU_BACKEND if gpus else "gloo"),
        run_config=ray_train.RunConfig(
            name=f"{state.name}-{submission}",
            storage_path=state.storage.uri(f"{state.folder}/ray"),
            failure_config=ray_train.FailureConfig(max_failures=settings.max_failures),
        ),
        headroom_cpus=cluster.HEADROOM_CPUS,
    )  # fmt: skip


def _run_worker(config: dict[str, Any]) -> None:
    """Called by Ray Train in each worker, inside the process group."""
    from raysys.train._worker import run_worker

    run_worker(**config, device=str(ray_train_torch.get_device()))
