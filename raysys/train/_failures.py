"""Errors of a training: those that would recur in new workers, and those that may not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ray.exceptions import RayError

from raysys import cluster
from raysys.errors import StorageError, TrainError
from raysys.imports import lazy_import

if TYPE_CHECKING:
    from raysys.train._task import TrainingTask

distributed = lazy_import("torch.distributed")

# From a file, a connection, a full memory or the object store: new workers may well succeed.
_PASSING = (OSError, EOFError, MemoryError, StorageError, RayError)
# PyTorch raises a RuntimeError for these too.
_PASSING_WORDS = (
    "connection", "peer", "timed out", "timeout", "gloo", "nccl", "cuda error", "memory",
    "broken pipe", "process group",
)  # fmt: skip


def recurs(error: Exception) -> bool:
    """Whether new workers would meet the same error, so that it ends the run at once."""
    if isinstance(error, RuntimeError):
        text = str(error).partition("\n")[0].lower()
        passing = isinstance(error, distributed.DistError)
        return not passing and not any(word in text for word in _PASSING_WORDS)
    return not isinstance(error, _PASSING)


@contextlib.contextmanager
def certain_errors(what: str) -> Iterator[None]:
    """Turn an error that recurs into a TrainError that says what failed, in one line."""
    try:
        yield
    except TrainError:
        raise
    except Exception as error:
        if not recurs(error):
            raise
        raise TrainError(f"{what} failed: {cluster.error_line(error)}") from error


def task_errors(task: TrainingTask, method: str) -> contextlib.AbstractContextManager[None]:
    """The `certain_errors` of a method of a task."""
    return certain_errors(f"{type(task).__name__}.{method}")
