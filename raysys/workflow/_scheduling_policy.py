"""What is decided while a job runs: which steps start, and whether a failed one is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from ray import exceptions

from raysys.cluster import HEADROOM_CPUS, Resources
from raysys.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from raysys.workflow._step import Step

_BACKOFF_S, _MOST_BACKOFF_S = 1.0, 30.0


def to_start(ready: Iterable[Step], running: Iterable[Step], have: Resources) -> list[Step]:
    """The steps that start now, in their order.

    Steps run beside each other only if all of them say what they need and it fits beside the CPU
    that is kept for tasks: two that each count on the whole cluster would wait for ever.

    Args:
        ready: Steps whose inputs are there, as the job has them.
        running: Steps that run.
        have: What the cluster has.
    """
    busy: list[Step] = list(running)
    starting: list[Step] = []
    for step in ready:
        if busy and not _fits([*busy, step], have):
            continue
        starting.append(step)
        busy.append(step)
    return starting


def _fits(together: list[Step], have: Resources) -> bool:
    needs = [step.how.needs for step in together]
    cpus = sum(one.cpus for one in needs if one) + HEADROOM_CPUS
    gpus = sum(one.gpus for one in needs if one)
    return all(needs) and cpus <= have.cpus and gpus <= have.gpus


@dataclass(frozen=True)
class Again:
    """A step is tried again.

    Attributes:
        delay_s: After so many seconds.
        why: What was lost, and the setting that permits another try.
    """

    delay_s: float
    why: str


def after_failure(step: Step, error: BaseException, failures: int, took_s: float) -> Again | None:
    """Whether a step is tried again; None if its error is final.

    Args:
        step: The step.
        error: What its last try ended with.
        failures: How many of its tries have failed, the last among them.
        took_s: How long that one took, in seconds.
    """
    lost = _lost(error)
    if lost is None or failures > step.how.retries:
        return None
    if step.how.timeout_s is not None and took_s >= step.how.timeout_s:
        lost = f"took longer than timeout_s={step.how.timeout_s:g}"
    delay_s = min(_BACKOFF_S * 2 ** (failures - 1), _MOST_BACKOFF_S)
    return Again(delay_s, f"{lost}; failure {failures} of at most retries={step.how.retries}")


def _lost(error: BaseException) -> str | None:
    """What was lost, if that and not the step's code is why it failed."""
    kinds = (
        exceptions.NodeDiedError, exceptions.ObjectLostError, exceptions.OutOfMemoryError,
        exceptions.RayActorError, exceptions.LocalRayletDiedError, exceptions.WorkerCrashedError,
        exceptions.ObjectFetchTimedOutError, exceptions.OwnerDiedError, UnavailableError,
        exceptions.TaskUnschedulableError, exceptions.ActorUnschedulableError, grpc.RpcError,
        ConnectionError, TimeoutError,
    )  # fmt: skip
    for one in _chain(error):
        if isinstance(one, kinds):
            return f"{type(one).__name__}: {str(one).strip().splitlines()[0][:200]}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
