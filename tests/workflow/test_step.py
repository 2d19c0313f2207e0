"""Steps as arguments of steps, without a cluster."""

import functools
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from raysys.errors import RaysysError
from raysys.storage import Storage
from raysys.workflow import Job
from raysys.workflow._step import Step, with_results
from raysys.workflow._step_results import save


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Holder:
    held: Any


class Model(BaseModel, arbitrary_types_allowed=True):
    held: Any


class Slotted(list):
    pass


def make(run: Any) -> int:
    return 1


def use(run: Any, *values: Any) -> None:
    pass


def _job() -> tuple[Job, Step]:
    job = Job("steps", Model(held=1), Storage("/tmp/nowhere"))
    return job, job.step(make)


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        (lambda step: Pair(step, 2), Pair("made", 2)),
        (lambda step: Pair([step], {"a": step["a"]}), Pair(["made"], {"a": "m"})),
        (lambda step: {step, 2}, {"made", 2}),
        (lambda step: frozenset([step]), frozenset(["made"])),
        (lambda step: (step, [2]), ("made", [2])),
        (lambda step: OrderedDict(b=step, a=1), OrderedDict(b="made", a=1)),
        (lambda step: defaultdict(int, a=step), defaultdict(int, a="made")),
        (lambda step: Slotted([step]), Slotted(["made"])),
    ],
)
def test_a_step_in_a_container_is_replaced_by_its_result(
    container: Callable[[Step], Any], expected: Any
) -> None:
    job, made = _job()
    step = job.step(use, container(made))
    assert step.inputs == [made]

    class Result(str):
        def __getitem__(self, key: Any) -> str:
            return "m" if key == "a" else super().__getitem__(key)

    (value,) = with_results(step.args, {"make": Result("made")})
    assert value == expected
    assert type(value) is type(expected)


def test_a_container_without_steps_is_the_same_object() -> None:
    value = {"a": [1, (2, {3})]}
    assert with_results(value, {}) is value


@pytest.mark.parametrize(
    "hide",
    [
        Holder,
        lambda step: Model(held=step),
        lambda step: [Holder({"a": [step]})],
        lambda step: Holder(Holder(step)),
        lambda step: {step: 1},
        lambda step: functools.partial(use, step),
        lambda step: lambda: step,
        lambda step: Holder(step["a"]),
    ],
)
def test_a_step_that_would_not_be_replaced_is_refused(hide: Callable[[Step], Any]) -> None:
    job, made = _job()
    with pytest.raises(RaysysError, match=r"step .make. is hidden in a .* give it as an argument"):
        job.step(use, hide(made))


def test_an_item_has_a_digest_of_its_own(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    first = save(storage, "first", {"a": [1, 2], "b": "x"})
    second = save(storage, "second", {"a": [1, 2], "b": "y", "c": 1})
    assert first.content != second.content
    assert first.items["'a'"] == second.items["'a'"]
    assert first.items["'b'"] != second.items["'b'"]
    assert save(storage, "third", ("z", [1, 2])).items["1"] == first.items["'a'"]
    assert save(storage, "fourth", 5).items == {}


class Scale:
    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, run: Any, value: int) -> int:
        return self.by * value

    def offset(self, run: Any, value: int, more: int = 1) -> int:
        return self.by + value + more


def test_partials_objects_and_methods_are_steps_with_names() -> None:
    job, made = _job()
    named = functools.partial(use, 1)
    named.__name__ = "use_again"  # type: ignore[attr-defined]
    for function in (functools.partial(use, 2), named, Scale(3), Scale(3).offset):
        job.step(function, made)
    assert list(job.steps) == ["make", "use", "use again", "Scale", "offset"]
    with pytest.raises(RaysysError, match=r"two steps 'Scale': .* another name, its `__name__`"):
        job.step(Scale(4), made)
