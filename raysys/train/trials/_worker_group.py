"""A process group of actors that are asked together."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from raysys.cluster import task_error_cause
from raysys.errors import TrainError

START_S = 120.0  # until the processes have started and the task is prepared
_OTHERS_S = 5.0  # for the remaining workers to fail too


class WorkerGroup:
    """Actors of one process group; a dead or hung one ends the group.

    Attributes:
        lost: Whether the group has ended.
        facts: Answer of rank 0 to `join`.
    """

    def __init__(self, start: Callable[[int, int], Any], num_workers: int) -> None:
        self.lost = False
        self._workers = [start(rank, num_workers) for rank in range(num_workers)]
        try:
            address = self._wait([self._workers[0].address.remote()], START_S)[0]
            self.facts: dict[str, Any] = self.ask("join", START_S, address)[0]
        except TrainError:
            self.end(gracefully=False)
            raise

    def ask(self, method: str, timeout_s: float, *arguments: Any) -> list[Any]:
        """Call a method of all workers at once; returns their answers by rank."""
        calls = [getattr(worker, method).remote(*arguments) for worker in self._workers]
        return self._wait(calls, timeout_s)

    def _wait(self, calls: list[Any], timeout_s: float) -> list[Any]:
        ends = time.monotonic() + timeout_s
        waiting, failure = calls, None
        while waiting:
            left = max(0.0, ends - time.monotonic())
            done, waiting = ray.wait(waiting, num_returns=1, timeout=left)
            if not done:
                self.end(gracefully=False)
                raise failure or TrainError(f"no answer within {timeout_s:.0f} s")
            try:
                ray.get(done)
            except ray.exceptions.RayActorError as error:
                failure = failure or TrainError(f"a worker died: {_last_line(error)}")
                self.lost = True
            except ray.exceptions.RayTaskError as error:
                failure = failure or TrainError(_last_line(task_error_cause(error)))
            if failure:
                # The remaining workers may wait for the failed one forever.
                ends = min(ends, time.monotonic() + _OTHERS_S)
        if failure:
            if self.lost:
                self.end(gracefully=False)
            raise failure
        return ray.get(calls)

    def end(self, *, gracefully: bool = True) -> None:
        """Leave the process group and end the processes."""
        if gracefully and not self.lost:
            left = [worker.leave.remote() for worker in self._workers]
            ray.wait(left, num_returns=len(left), timeout=_OTHERS_S)
        self.lost = True
        for worker in self._workers:
            ray.kill(worker)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    return text if isinstance(error, TrainError) else f"{type(error).__name__}: {text}"
