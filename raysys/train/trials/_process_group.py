"""The processes of one process group, asked together; a hung or dead one ends them all."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import ray

from raysys.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Callable

START_S = 120.0  # for processes to start and the task to prepare
_OTHERS_S = 5.0  # for the other workers to fail too, after one has


class Gang:
    """The processes of one group.

    Attributes:
        lost: They cannot be asked any more.
        facts: What the first one found.
    """

    def __init__(self, make: Callable[[int, int], Any], workers: int) -> None:
        self.lost = False
        self._workers = [make(rank, workers) for rank in range(workers)]
        try:
            address = self._wait([self._workers[0].address.remote()], START_S)[0]
            self.facts: dict[str, Any] = self.ask("join", START_S, address)[0]
        except TrainError:
            self.end(kindly=False)
            raise

    def ask(self, method: str, timeout_s: float, *arguments: Any) -> list[Any]:
        """Call a method of all workers at once; their answers by rank."""
        calls = [getattr(worker, method).remote(*arguments) for worker in self._workers]
        return self._wait(calls, timeout_s)

    def _wait(self, calls: list[Any], timeout_s: float) -> list[Any]:
        ends = time.monotonic() + timeout_s
        waiting, failure = calls, None
        while waiting:
            left = max(0.0, ends - time.monotonic())
            done, waiting = ray.wait(waiting, num_returns=1, timeout=left)
            if not done:
                self.end(kindly=False)
                raise failure or TrainError(f"no answer within {timeout_s:.0f} s")
            try:
                ray.get(done)
            except ray.exceptions.RayActorError as error:
                failure = failure or TrainError(f"a worker died: {_last_line(error)}")
                self.lost = True
            except ray.exceptions.RayTaskError as error:
                failure = failure or TrainError(_last_line(error.cause or error))
            if failure:
                # The others may wait for the one that failed, for ever.
                ends = min(ends, time.monotonic() + _OTHERS_S)
        if failure:
            if self.lost:
                self.end(kindly=False)
            raise failure
        return ray.get(calls)

    def end(self, *, kindly: bool = True) -> None:
        """Leave the group and end the processes."""
        if kindly and not self.lost:
            left = [worker.leave.remote() for worker in self._workers]
            ray.wait(left, num_returns=len(left), timeout=_OTHERS_S)
        self.lost = True
        for worker in self._workers:
            ray.kill(worker)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    return text if isinstance(error, TrainError) else f"{type(error).__name__}: {text}"
