"""Decisions while a job runs: the steps to start, and the retry of a failed step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from ray import exceptions

from raysys.cluster import HEADROOM_CPUS, Resources
from raysys.errors import StepError, UnavailableError

if TYPE_CHECKING:
    from raysys.workflow._step import Step

_BACKOFF_S, _MAX_BACKOFF_S = 1.0, 30.0


def steps_to_start(
    ready: Iterable[Step], running: Iterable[Step], available: Resources
) -> list[Step]:
    """Steps that start now, in the job's order.

    Steps run in parallel only if all declare their resources, and these fit beside the CPU reserved
    for tasks: two steps that both use the complete cluster would wait for each other forever.
    `ready` are the steps whose inputs are computed.
    """
    busy: list[Step] = list(running)
    starting: list[Step] = []
    for step in ready:
        if busy and not _fits([*busy, step], available):
            continue
        starting.append(step)
        busy.append(step)
    return starting


def _fits(steps: list[Step], available: Resources) -> bool:
    demands = [step.settings.resources for step in steps]
    cpus = sum(demand.cpus for demand in demands if demand) + HEADROOM_CPUS
    gpus = sum(demand.gpus for demand in demands if demand)
    return all(demands) and cpus <= available.cpus and gpus <= available.gpus


@dataclass(frozen=True)
class Retry:
    """Another attempt of a step; the reason names the loss and the setting that permits it."""

    delay_s: float
    reason: str


def retry_of(step: Step, error: BaseException, failures: int, duration_s: float) -> Retry | None:
    """The next attempt of a failed step; None if its error is final.

    `error` and `duration_s` are those of the last attempt, which `failures` includes.
    """
    settings, lost = step.settings, loss_of(error)
    if lost is None or failures > settings.max_retries:
        return None
    if settings.timeout_s is not None and duration_s >= settings.timeout_s:
        lost = f"took longer than timeout_s={settings.timeout_s:g}"
    delay_s = min(_BACKOFF_S * 2 ** (failures - 1), _MAX_BACKOFF_S)
    return Retry(delay_s, f"{lost}; failure {failures} of max_retries={settings.max_retries}")


def loss_of(error: BaseException) -> str | None:
    """Description of the loss, if a loss and not the step's code caused the failure."""
    kinds = (
        exceptions.NodeDiedError, exceptions.ObjectLostError, exceptions.OutOfMemoryError,
        exceptions.RayActorError, exceptions.LocalRayletDiedError, exceptions.WorkerCrashedError,
        exceptions.ObjectFetchTimedOutError, exceptions.OwnerDiedError, UnavailableError,
        exceptions.TaskUnschedulableError, exceptions.ActorUnschedulableError, grpc.RpcError,
        ConnectionError, TimeoutError,
    )  # fmt: skip
    for cause in _chain(error):
        if isinstance(cause, StepError):
            return cause.loss
        if isinstance(cause, exceptions.WorkerCrashedError):
            return "its process was killed, ran out of memory or called os._exit"
        if isinstance(cause, kinds):
            return f"{type(cause).__name__}: {str(cause).strip().splitlines()[0][:200]}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
