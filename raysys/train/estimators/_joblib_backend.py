"""A joblib backend that runs parallel loops as Ray tasks."""

from __future__ import annotations

import io
import pickle
from collections import ChainMap
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import ray
from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)
from ray import cloudpickle
from threadpoolctl import threadpool_limits

from raysys import cluster
from raysys.errors import RaysysError

# Ray sends smaller values with a task, and stores larger ones in the object store.
_LARGE_BYTES = 100_000
_MAX_NESTING = 1  # loops inside loops inside loops run in their process


class RayTasks(AutoBatchingMixin, ParallelBackendBase):
    """A joblib backend of plain tasks, one CPU each.

    Ray's own (`ray.util.joblib`) starts a pool of actors for each loop, which takes seconds,
    reserves no CPUs for them and changes a base class of joblib for the process. This one uses
    idle workers. Arrays and frames of more than 100 kB, at any depth of a task's arguments, are
    put into the object store once a loop and mapped by the tasks.

    The caller of a loop waits in its main thread, so Ray lends out its CPUs: nested loops never
    wait for each other.
    """

    supports_retrieve_callback = False
    supports_timeout = False

    def __init__(self, nesting_level: int = 0, stored: Sequence[tuple[Any, Any]] = ()) -> None:
        """A backend for `joblib.parallel_config(backend=...)`.

        Args:
            nesting_level: Number of enclosing loops.
            stored: Values in the object store, each with its reference; not to be changed.
        """
        super().__init__(nesting_level=nesting_level)
        # Values by id, each with its reference: those of the current loop before those of all.
        self._stored = ChainMap({}, {id(value): (value, ref) for value, ref in stored})
        self._running: dict[Any, Callable[..., Any] | None] = {}

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Tasks at a time; negative numbers count from the CPUs beyond the headroom."""
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        room = int(cluster.resources().cpus - cluster.HEADROOM_CPUS)
        return max(1, room + 1 + n_jobs)

    def configure(self, n_jobs: int | None = 1, parallel: Any = None, **_: Any) -> int:
        """Begin a loop."""
        effective = self.effective_n_jobs(n_jobs)
        if effective == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        return effective

    def get_nested_backend(self) -> tuple[ParallelBackendBase, int | None]:
        """Backend of the loops inside a task: their process, unless they set `n_jobs`."""
        level = self.nesting_level + 1
        kind = RayTasks if level <= _MAX_NESTING else SequentialBackend
        return kind(nesting_level=level), None

    def submit(self, func: Callable[[], Any], callback: Callable[..., Any] | None = None) -> Any:
        """Start a task."""
        sink = io.BytesIO()
        pickler = _Pickler(sink, self._stored)
        pickler.dump(func)
        task = ray.remote(_run).options(name=f"joblib {self.nesting_level}")
        ref = task.remote(sink.getvalue(), *pickler.references)
        self._running[ref] = callback
        return ref

    def retrieve_result(self, out: Any, timeout: float | None = None) -> Any:
        """Values of a task; each task that ends first lets joblib submit another."""
        while out in self._running:
            (finished,), _ = ray.wait(list(self._running), num_returns=1, fetch_local=False)
            callback = self._running.pop(finished)
            if callback:
                callback(finished)
        return value_of(out)

    def terminate(self) -> None:
        """End a loop; after an error, wait for running tasks."""
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), fetch_local=False)
        self._running, self._stored = {}, self._stored.parents.new_child()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End a loop after an error."""
        self.terminate()

    def __reduce__(self) -> tuple[Any, ...]:
        return RayTasks, (self.nesting_level,)


def value_of(ref: Any) -> Any:
    """Value of a task, or the error that it raised."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = cluster.task_error_cause(error)
        if isinstance(cause, RaysysError):
            raise cause from None
        raise cause from error


class _Pickler(cloudpickle.CloudPickler):
    """Writes large values as numbers of references to the object store."""

    def __init__(self, sink: io.BytesIO, stored: MutableMapping[int, tuple[Any, Any]]) -> None:
        super().__init__(sink)
        self._stored, self._numbers = stored, dict[int, int]()

    @property
    def references(self) -> list[Any]:
        """References to the large values of the arguments, by number."""
        return [self._stored[key][1] for key in self._numbers]

    def persistent_id(self, value: Any) -> int | None:
        """Number of the reference to a large value; None pickles the value."""
        if not _is_large(value):
            return None
        if id(value) not in self._stored:
            self._stored[id(value)] = value, ray.put(value)  # the value too: its id stays its own
        return self._numbers.setdefault(id(value), len(self._numbers))


class _Unpickler(pickle.Unpickler):
    def __init__(self, source: io.BytesIO, values: Sequence[Any]) -> None:
        super().__init__(source)
        self._values = values

    def persistent_load(self, number: int) -> Any:
        """A value mapped from the object store."""
        return self._values[number]


def _is_large(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.nbytes > _LARGE_BYTES
    if isinstance(value, pd.DataFrame | pd.Series):
        return int(np.sum(value.memory_usage())) > _LARGE_BYTES
    return False


def _run(payload: bytes, *values: Any) -> Any:
    """Values of a batch of calls, in a task."""
    call = _Unpickler(io.BytesIO(payload), values).load()  # imports what has threads
    with threadpool_limits(1):
        return call()
