"""Which steps start, and which are tried again."""

from typing import Any

import pytest
from ray import exceptions

from raysys.cluster import Resources
from raysys.errors import DataError, UnavailableError
from raysys.workflow._scheduling_policy import after_failure, to_start
from raysys.workflow._step import Options, Step

HAVE = Resources(cpus=5, gpus=1)


def step(name: str, needs: Resources | None = None, **how: Any) -> Step:
    return Step(name, print, how=Options(needs=needs, **how))


def test_a_step_that_says_nothing_runs_alone() -> None:
    a, b = step("a"), step("b")
    small = step("small", Resources(1, 0))
    assert to_start([a, b], [], HAVE) == [a]
    assert to_start([b], [a], HAVE) == []
    assert to_start([small], [a], HAVE) == []
    assert to_start([small, a], [], HAVE) == [small]


def test_steps_run_together_as_far_as_there_is_room_beside_the_head_room() -> None:
    two, other, third = (step(name, Resources(2, 0)) for name in "abc")
    assert to_start([two, other, third], [], HAVE) == [two, other]
    assert to_start([third], [two], HAVE) == [third]
    gpu, more = step("gpu", Resources(1, 1)), step("more", Resources(1, 1))
    assert to_start([gpu, more, two], [], HAVE) == [gpu, two]


@pytest.mark.parametrize(
    "error",
    [
        exceptions.WorkerCrashedError(),
        exceptions.NodeDiedError("node 7"),
        exceptions.OutOfMemoryError("too much"),
        UnavailableError("the server is away"),
        ConnectionResetError("peer"),
    ],
)
def test_what_was_lost_is_tried_again_as_often_as_the_step_says(error: Exception) -> None:
    again = [after_failure(step("a", retries=2), error, failures, 1.0) for failures in (1, 2, 3)]
    assert [one and one.delay_s for one in again] == [1, 2, None]
    assert again[1] is not None
    assert again[1].why.startswith(type(error).__name__)
    assert again[1].why.endswith("failure 2 of at most retries=2")


def test_a_cause_counts() -> None:
    outer = RuntimeError("training ended")
    outer.__cause__ = exceptions.WorkerCrashedError()
    assert after_failure(step("a"), outer, 1, 1.0) is not None


@pytest.mark.parametrize("error", [DataError("bad"), ValueError("bad"), FileNotFoundError("x")])
def test_an_error_of_the_code_is_final(error: Exception) -> None:
    assert after_failure(step("a"), error, 1, 1.0) is None


def test_a_time_out_is_named() -> None:
    again = after_failure(step("a", timeout_s=5), exceptions.WorkerCrashedError(), 1, 5.1)
    assert again is not None
    assert again.why.startswith("took longer than timeout_s=5")
