"""Decisions about which steps start and which are retried."""

from typing import Any

import pytest
from ray import exceptions

from raysys.cluster import Resources
from raysys.errors import DataError, UnavailableError
from raysys.workflow import Step, StepOptions
from raysys.workflow._scheduling_policy import retry_of, steps_to_start

HAVE = Resources(cpus=5, gpus=1)


def step(name: str, resources: Resources | None = None, **options: Any) -> Step:
    return Step(name, print, settings=StepOptions(resources=resources, **options))


def test_a_step_without_resources_runs_alone() -> None:
    a, b = step("a"), step("b")
    small = step("small", Resources(1, 0))
    assert steps_to_start([a, b], [], HAVE) == [a]
    assert steps_to_start([b], [a], HAVE) == []
    assert steps_to_start([small], [a], HAVE) == []
    assert steps_to_start([small, a], [], HAVE) == [small]


def test_steps_run_together_as_far_as_there_is_room_beside_the_head_room() -> None:
    two, other, third = (step(name, Resources(2, 0)) for name in "abc")
    assert steps_to_start([two, other, third], [], HAVE) == [two, other]
    assert steps_to_start([third], [two], HAVE) == [third]
    gpu, more = step("gpu", Resources(1, 1)), step("more", Resources(1, 1))
    assert steps_to_start([gpu, more, two], [], HAVE) == [gpu, two]


@pytest.mark.parametrize(
    "error",
    [
        exceptions.NodeDiedError("node 7"),
        exceptions.OutOfMemoryError("too much"),
        UnavailableError("the server is away"),
        ConnectionResetError("peer"),
    ],
)
def test_a_lost_step_is_retried_max_retries_times(error: Exception) -> None:
    retries = [retry_of(step("a", max_retries=2), error, failures, 1.0) for failures in (1, 2, 3)]
    assert [retry and retry.delay_s for retry in retries] == [1, 2, None]
    assert retries[1] is not None
    assert retries[1].reason.startswith(type(error).__name__)
    assert retries[1].reason.endswith("failure 2 of max_retries=2")


def test_a_cause_counts() -> None:
    outer = RuntimeError("training ended")
    outer.__cause__ = exceptions.WorkerCrashedError()
    retry = retry_of(step("a"), outer, 1, 1.0)
    assert retry is not None
    assert retry.reason.startswith("its process was killed, ran out of memory or called os._exit;")


@pytest.mark.parametrize("error", [DataError("bad"), ValueError("bad"), FileNotFoundError("x")])
def test_an_error_of_the_code_is_final(error: Exception) -> None:
    assert retry_of(step("a"), error, 1, 1.0) is None


def test_a_time_out_is_named() -> None:
    retry = retry_of(step("a", timeout_s=5), exceptions.WorkerCrashedError(), 1, 5.1)
    assert retry is not None
    assert retry.reason.startswith("took longer than timeout_s=5")
