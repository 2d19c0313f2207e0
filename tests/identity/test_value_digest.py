"""Values by their content."""

import functools
import subprocess
import sys
import threading
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from raysys.errors import RaysysError
from raysys.identity import InputFiles, digest


class Settings(BaseModel):
    rate: float = 0.5
    names: tuple[str, ...] = ("a",)


@dataclass
class Point:
    x: int = 1
    y: str = "b"


def add(a: int, b: int) -> int:
    return a + b


def adder(b: int) -> Any:
    return lambda a: a + b


def power(a: int, by: int) -> int:
    return a**by


def with_default(by: int) -> Any:
    """`power` as a default that was computed at import makes it."""
    function = types.FunctionType(power.__code__, power.__globals__, "power", (by,))
    function.__qualname__, function.__module__ = "power", power.__module__
    return function


class Power:
    __slots__ = ("by",)

    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, a: int) -> int:
        return a**self.by

    def inverse(self, a: float) -> float:
        return a ** (1 / self.by)


@dataclass
class Times:
    by: int

    def __call__(self, a: int) -> int:
        return a * self.by


@functools.cache
def cached(a: int) -> int:
    return a


class Open(BaseModel, extra="allow"):
    pass


OPERATIONS = {
    "two": lambda a: a * 2,
    "three": lambda a: a * 3,
    "named": lambda a: add(a, 2),
    "other name": lambda a: power(a, 2),
    "default": lambda a, b=1: a * b,
    "other default": lambda a, b=2: a * b,
    "keyword": lambda a, *, b=1: a * b,
    "inner": lambda a: [x * 2 for x in a],
    "other inner": lambda a: [x * 3 for x in a],
}

DIFFERENT = [
    None, 0, 0.0, False, "0", b"0", 1, -1, 1.5, float("nan"), "", "a", "ab", [], (), {}, set(),
    ["a", "b"], ["ab"], [["a"], "b"], ["a", ["b"]], ("a", "b"), {"a": 1}, {"a": 2}, {"b": 1},
    {1, 2}, {1, 3}, np.zeros(2), np.zeros(3), np.zeros((2, 1)), np.zeros(2, np.float32),
    np.array(["a", None], object), Settings(), Settings(rate=0.6), Settings(names=("a", "b")),
    Point(), Point(x=2), add, functools.partial(add, 1), functools.partial(add, 2),
    functools.partial(add, b=1), adder(1), adder(2), Point, Settings, Path("a"), len,
    *OPERATIONS.values(), OPERATIONS, {**OPERATIONS, "two": OPERATIONS["three"]}, power,
    with_default(2), with_default(3), Open(), Open(rate=1), Open(rate=2), Open(other=1),
    Power(2), Power(3), Power(2).inverse, Power(3).inverse, Times(2), Times(3), cached,
    functools.partial(Power(2), 1), functools.partial(Power(3), 1),
]  # fmt: skip


def test_what_differs_has_another_digest() -> None:
    assert len({digest(value) for value in DIFFERENT}) == len(DIFFERENT)
    assert digest(1, 2) != digest([1, 2]) != digest(12)


def test_what_is_equal_has_the_same_in_every_process() -> None:
    code = (
        "from tests.identity.test_value_digest import *;"
        "print([digest(value) for value in DIFFERENT] + [digest({'x', 'y', 'z'})])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": ""},
    )  # fmt: skip
    ours = [digest(value) for value in DIFFERENT] + [digest({"x", "y", "z"})]
    assert told.stdout.strip() == str(ours)


def test_files_count_with_their_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "below").mkdir(parents=True)
        (folder / "below" / "a.csv").write_text("x\n1\n")
    assert digest(InputFiles(one)) == digest(InputFiles(two))
    assert digest(InputFiles(one)) != digest(str(one))
    (two / "below" / "a.csv").write_text("x\n2\n")
    assert digest(InputFiles(one)) != digest(InputFiles(two))
    uri = f"file://{one}"
    assert digest(InputFiles(uri)) == digest(InputFiles(uri))
    with pytest.raises(RaysysError, match="no such file"):
        digest(InputFiles(tmp_path / "three"))


def test_what_has_no_content_is_refused() -> None:
    with pytest.raises(RaysysError, match="the content of a object is unknown"):
        digest(object())
    with pytest.raises(RaysysError, match="the content of a lock is unknown"):
        digest(Power(threading.Lock()))  # type: ignore[arg-type]


def test_tensors_and_modules_count_by_their_values() -> None:
    module = torch.nn.Linear(40, 40)
    before = digest(module, strict=False)
    assert digest(module, strict=False) == before
    with torch.no_grad():
        module.weight[20, 20] += 1  # which its text does not show
    assert digest(module, strict=False) != before
    tensors = [
        torch.zeros(2),
        torch.zeros(2, 1),
        torch.zeros(2, dtype=torch.bfloat16),
        torch.ones(2),
    ]
    assert (
        len({digest(tensor) for tensor in [*tensors, torch.tensor(1.5), torch.tensor(True)]}) == 6
    )
