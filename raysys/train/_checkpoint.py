"""Checkpoints that any number of workers under any strategy writes and reads."""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from raysys.errors import StorageError
from raysys.train import _metrics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from raysys.storage import Storage
    from raysys.train._task import Parameters
    from raysys.train.strategies._base import Replica, TensorState

_KEPT = 2  # complete ones; the second is for a reader that the writers overtake
_CHUNK_BYTES = 32 << 20
_CHUNKS_WAITING = 2


@dataclass(frozen=True)
class _Chunk:
    """A file to write."""

    path: str
    content: dict[str, Any]


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: Optimizer steps taken.
        history: What each finished epoch measured.
        loss_sum: Of the steps of the epoch that is under way.
        examples: Number of training examples, which decides what a step takes.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    examples: int = 0


class Checkpoints:
    """The checkpoints of a run: a folder each, with a part of every worker.

    A part appears whole, and its name says of how many it is one, so a checkpoint is complete when
    all parts are there: nobody has to wait for the others to say so. A part holds parameters and
    optimizer state by name, whole tensors, which is what makes it a matter of the reader's own
    strategy and number how they are spread again.
    """

    def __init__(self, storage: Storage, folder: str, *, attempt: str, rank: int, world: int):
        """Open them for one worker.

        Args:
            storage: Where they are.
            folder: Storage path of the run's folder.
            attempt: The same for workers that write together and for no others, since what a
                dead group left must not be taken for a part of what the next one writes.
            rank: Number of this worker.
            world: Number of workers.
        """
        self._storage, self._folder = storage, f"{folder}/checkpoints"
        self._run = folder.removeprefix("training/")
        self._attempt, self._rank, self._world = attempt, rank, world
        self._chunks: queue.Queue[_Chunk] = queue.Queue(_CHUNKS_WAITING)
        self._failure: BaseException | None = None
        threading.Thread(target=self._write_all, daemon=True).start()

    def save(self, replica: Replica, progress: Progress) -> None:
        """Copy the state; a thread writes it while training goes on.

        A large state is handed over in chunks, and waits for the thread when more than two are
        not yet written, so that the copy never takes the memory of a second state.

        Raises:
            StorageError: An earlier one could not be written.
        """
        import torch

        self._check()
        path = f"{self._folder}/{progress.step:010d}-{self._attempt}/{self._rank}-of-{self._world}"
        tensors: dict[str, TensorState] = {}
        count = size = 0
        for name, state in replica.states():
            if size > _CHUNK_BYTES:
                self._chunks.put(_Chunk(f"{path}.{count}.pt", {"tensors": tensors}))
                tensors, count, size = {}, count + 1, 0
            tensors[name] = {k: torch.empty_like(v).copy_(v) for k, v in state.items()}
            size += sum(value.nbytes for value in state.values())
        part = {"tensors": tensors, "chunks": count, "progress": asdict(progress)}
        self._chunks.put(_Chunk(f"{path}.pt", part))

    def wait(self) -> None:
        """Wait until this worker's parts are on disk.

        Raises:
            StorageError: One could not be written.
        """
        self._chunks.join()
        self._check()

    def _check(self) -> None:
        if self._failure:
            raise StorageError(
                f"a checkpoint could not be written to {self._storage.uri(self._folder)}: "
                f"{str(self._failure).splitlines()[0]}. Make room or give it access; the same "
                "call goes on from the checkpoint before"
            ) from self._failure

    def _write_all(self) -> None:
        import torch

        started = None
        while True:
            chunk = self._chunks.get()
            started = started or time.perf_counter()
            try:
                # A part whose chunks are not all there must not appear.
                if self._failure is None:
                    with self._storage.new_file(chunk.path) as file:
                        torch.save(chunk.content, file)
                    if self._rank == 0 and "progress" in chunk.content:
                        prune(self._storage, self._folder, _KEPT)
                if "progress" in chunk.content:  # the last of a part
                    _metrics.checkpoint(self._run, time.perf_counter() - started)
                    started = None
            except Exception as error:
                self._failure = error
            finally:
                self._chunks.task_done()


def prune(storage: Storage, folder: str, kept: int) -> None:
    """Remove all that is older than the newest complete ones to keep, complete or not."""
    found = complete(storage, folder)
    if len(found) < kept:
        return
    for name in storage.names(folder):
        if name < found[-kept]:
            # A worker of a group that is being ended may remove the same.
            with contextlib.suppress(FileNotFoundError):
                storage.remove(f"{folder}/{name}")


def complete(storage: Storage, folder: str) -> list[str]:
    """Names of the complete checkpoints in a folder, the newest last."""
    found = []
    for name in storage.names(folder):
        files = storage.names(f"{folder}/{name}")
        parts = {file for file in files if re.fullmatch(r"\d+-of-\d+\.pt", file)}
        worlds = {int(part.removesuffix(".pt").rpartition("-")[2]) for part in parts}
        if any(parts >= {f"{rank}-of-{world}.pt" for rank in range(world)} for world in worlds):
            found.append(name)
    return found


class Saved:
    """A checkpoint to read."""

    def __init__(self, parts: list[dict[str, Any]]) -> None:
        self.progress = Progress(**next(p["progress"] for p in parts if "progress" in p))
        self._tensors = {name: state for part in parts for name, state in part["tensors"].items()}

    def read(self, name: str) -> TensorState:
        """The state of one parameter or buffer; a dict of the caller's own."""
        try:
            return dict(self._tensors[name])
        except KeyError:
            raise StorageError(
                f"the checkpoint has no tensor {name!r}: the module is another than the one that "
                "was saved. Train under another name, or build the same module"
            ) from None

    def parameters(self) -> Parameters:
        """All values by name."""
        return {name: state["value"] for name, state in self._tensors.items()}


def keep_newest(storage: Storage, folder: str) -> None:
    """Of a run that has ended, remove all checkpoints but the newest complete one."""
    folder = f"{folder}/checkpoints"
    prune(storage, folder, 1)
    for name in set(storage.names(folder)) - set(complete(storage, folder)[-1:]):
        storage.remove(f"{folder}/{name}")


def newest(storage: Storage, folder: str) -> str | None:
    """Name of the newest complete checkpoint of a run, if there is one."""
    found = complete(storage, f"{folder}/checkpoints")
    return found[-1] if found else None


def step_of(name: str | None) -> int:
    """The step after which a checkpoint was written; 0 of none."""
    return int(name.partition("-")[0]) if name else 0


@contextlib.contextmanager
def opened(storage: Storage, folder: str, name: str) -> Iterator[Saved]:
    """A checkpoint, its tensors mapped from the files for as long as the context lasts."""
    import torch

    path = f"{folder}/checkpoints/{name}"
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(_local(storage, f"{path}/{part}")) for part in storage.names(path)
        ]
        parts = []
        for file in files:
            try:
                parts.append(torch.load(file, mmap=True, weights_only=True, map_location="cpu"))
            except Exception as error:
                raise StorageError(
                    f"{file} cannot be read: {str(error).splitlines()[0]}. Remove "
                    f"{storage.uri(path)}: the checkpoint before it is taken then"
                ) from error
        yield Saved(parts)


@contextlib.contextmanager
def _local(storage: Storage, path: str) -> Iterator[Path]:
    """A file to map; a remote one's copy goes when it has been read."""
    local = storage.fetch(path)
    yield local
    if not storage.is_local:
        local.unlink()
        local.parent.rmdir()
