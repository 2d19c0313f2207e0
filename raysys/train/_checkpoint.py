"""Checkpoints that any number of workers under any strategy writes and reads."""

from __future__ import annotations

import contextlib
import copy
import queue
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from raysys.errors import StorageError
from raysys.imports import lazy_import
from raysys.telemetry import metrics

if TYPE_CHECKING:
    from raysys.storage import Storage
    from raysys.train._task import StateDict
    from raysys.train.strategies._strategy import Strategy, TensorState

torch = lazy_import("torch")

_TO_KEEP = 2  # complete checkpoints; the second is for a reader that the writers overtake
_CHUNK_BYTES = 32 << 20
_CHUNKS_WAITING = 2


@dataclass
class TrainingProgress:
    """Position of a run.

    Attributes:
        step: Optimizer steps taken.
        history: Metrics of the finished epochs.
        loss_sum: Sum of the losses of the current epoch's steps.
        examples: Number of training examples, which decides the examples of a step.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    examples: int = 0


class CheckpointWriter:
    """Writes checkpoints of a run: a folder each, with a part of every worker.

    A part appears atomically, and its name has the number of parts, so a checkpoint is complete
    when all parts exist; no worker waits for the others. A part holds parameters and optimizer
    state by name, as full tensors, so that a reader may have another strategy and world size.
    """

    def __init__(self, storage: Storage, folder: str, *, attempt: str, rank: int, world: int):
        """Start the writing thread of one of `world` workers, for the run in `folder`.

        `attempt` is the id of the worker group, so that parts of a dead group do not complete a
        checkpoint of the next.
        """
        self._storage, self._folder = storage, f"{folder}/checkpoints"
        self._run = folder.removeprefix("training/")
        self._attempt, self._rank, self._world = attempt, rank, world
        self._chunks: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue(_CHUNKS_WAITING)
        self._failure: BaseException | None = None
        threading.Thread(target=self._write_all, daemon=True).start()

    def save(self, strategy: Strategy, progress: TrainingProgress) -> None:
        """Copy the state; a thread writes it while training continues.

        A large state is handed over in chunks, and waits for the thread when more than two are
        unwritten, so that the copy never needs the memory of a second state.

        Raises:
            StorageError: An earlier checkpoint could not be written.
        """
        self._check()
        path = f"{self._folder}/{progress.step:010d}-{self._attempt}/{self._rank}-of-{self._world}"
        tensors: dict[str, TensorState] = {}
        count = size = 0
        for name, state in strategy.tensor_states():
            if size > _CHUNK_BYTES:
                self._chunks.put((f"{path}.{count}.pt", {"tensors": tensors}))
                tensors, count, size = {}, count + 1, 0
            tensors[name] = {k: torch.empty_like(v).copy_(v) for k, v in state.items()}
            size += sum(value.nbytes for value in state.values())
        part = {
            "tensors": tensors, "chunks": count, "progress": asdict(progress),
            "extra_state": copy.deepcopy(strategy.extra_state()) if self._rank == 0 else {},
        }  # fmt: skip
        self._chunks.put((f"{path}.pt", part))

    def wait(self) -> None:
        """Wait until this worker's parts are on disk.

        Raises:
            StorageError: A part could not be written.
        """
        self._chunks.join()
        self._check()

    def _check(self) -> None:
        if self._failure:
            raise StorageError(
                f"cannot write a checkpoint to {self._storage.uri(self._folder)}: "
                f"{str(self._failure).splitlines()[0]}. Free space or grant access; the same call "
                "resumes from the previous checkpoint"
            ) from self._failure

    def _write_all(self) -> None:
        started = None
        while True:
            path, content = self._chunks.get()
            started = started or time.perf_counter()
            is_last = "progress" in content  # of a part
            try:
                # A part must not appear without all of its chunks.
                if self._failure is None:
                    with self._storage.new_file(path) as file:
                        torch.save(content, file)
                    if self._rank == 0 and is_last:
                        prune(self._storage, self._folder, _TO_KEEP)
                if is_last:
                    elapsed = time.perf_counter() - started
                    metrics.TRAIN_CHECKPOINT_SECONDS.observe(elapsed, {"run": self._run})
                    started = None
            except Exception as error:
                self._failure = error
            finally:
                self._chunks.task_done()


def prune(storage: Storage, folder: str, count: int) -> None:
    """Remove everything older than the newest `count` complete checkpoints."""
    names = complete(storage, folder)
    if len(names) < count:
        return
    for name in storage.names(folder):
        if name < names[-count]:
            # A worker of a group that is being ended may remove the same.
            with contextlib.suppress(FileNotFoundError):
                storage.remove(f"{folder}/{name}")


def complete(storage: Storage, folder: str) -> list[str]:
    """Names of the complete checkpoints in a folder, oldest first."""
    names = []
    for name in storage.names(folder):
        files = storage.names(f"{folder}/{name}")
        parts = {file for file in files if re.fullmatch(r"\d+-of-\d+\.pt", file)}
        worlds = {int(part.removesuffix(".pt").rpartition("-")[2]) for part in parts}
        if any(parts >= {f"{rank}-of-{world}.pt" for rank in range(world)} for world in worlds):
            names.append(name)
    return names


class CheckpointReader:
    """A checkpoint to read."""

    def __init__(self, parts: list[dict[str, Any]]) -> None:
        self.progress = TrainingProgress(**next(p["progress"] for p in parts if "progress" in p))
        self._tensors = {name: state for part in parts for name, state in part["tensors"].items()}
        self.extra_state = {
            name: state for part in parts for name, state in part.get("extra_state", {}).items()
        }

    def read(self, name: str) -> TensorState:
        """State of one parameter or buffer, in a new dict."""
        try:
            return dict(self._tensors[name])
        except KeyError:
            raise StorageError(
                f"the checkpoint has no tensor {name!r}: it is of another module. Train under "
                "another name, or build the same module"
            ) from None

    def state_dict(self) -> StateDict:
        """All values by name, and the extra state."""
        return {name: state["value"] for name, state in self._tensors.items()} | self.extra_state


def keep_newest(storage: Storage, folder: str) -> None:
    """Remove all checkpoints of a finished run but the newest complete one."""
    folder = f"{folder}/checkpoints"
    prune(storage, folder, 1)
    for name in set(storage.names(folder)) - set(complete(storage, folder)[-1:]):
        storage.remove(f"{folder}/{name}")


def newest(storage: Storage, folder: str) -> str | None:
    """Name of the newest complete checkpoint of a run, if any."""
    names = complete(storage, f"{folder}/checkpoints")
    return names[-1] if names else None


def step_of(name: str | None) -> int:
    """Step of a checkpoint; 0 for None."""
    return int(name.partition("-")[0]) if name else 0


@contextlib.contextmanager
def opened(storage: Storage, folder: str, name: str) -> Iterator[CheckpointReader]:
    """A checkpoint, its tensors mapped from the files within the context."""
    path = f"{folder}/checkpoints/{name}"
    with contextlib.ExitStack() as stack:
        parts = []
        for part in storage.names(path):
            file = storage.fetch(f"{path}/{part}")
            if not storage.is_local:  # a copy
                stack.callback(file.parent.rmdir)
                stack.callback(file.unlink)
            try:
                parts.append(torch.load(file, mmap=True, weights_only=True, map_location="cpu"))
            except Exception as error:
                raise StorageError(
                    f"cannot read {file}: {str(error).splitlines()[0]}. Remove "
                    f"{storage.uri(path)} to resume from the previous checkpoint"
                ) from error
        yield CheckpointReader(parts)
