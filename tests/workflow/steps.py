"""Steps of the jobs that tests run."""

import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from pydantic import BaseModel

from raysys.data import Table
from raysys.errors import DataError
from raysys.workflow import Run

FACTOR = 3


class Config(BaseModel):
    seed: int = 3
    rate: float = 0.5


def count(folder: str, step: str) -> None:
    """Note that a step has run."""
    with (Path(folder) / step).open("a") as file:
        file.write("x")


def counted(folder: str) -> dict[str, int]:
    return {file.name: len(file.read_text()) for file in Path(folder).iterdir() if file.is_file()}


def numbers(n: int) -> pa.Table:
    return pa.table({"x": list(range(n))})


def make(run: Run, folder: str, n: int) -> dict[str, Any]:
    count(folder, "make")
    table = Table.load(numbers, n)
    run.log_tables(numbers=table)
    run.log_metrics({"rows": len(table)})
    print("made")
    return {"table": table, "held": ray.put([n, n])}


def tripled(run: Run, folder: str, table: Table) -> float:
    count(folder, "tripled")
    return FACTOR * sum(table.to_arrow()["x"].to_pylist())


class Scaled:
    """A step with state."""

    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, run: Run, folder: str, value: int, *, more: int = 0) -> int:
        count(folder, "scaled")
        return self.by * value + more


def total(run: Run, folder: str, made: dict[str, Any], product: float) -> float:
    count(folder, "total")
    run.log_curve("sums", {"sum": [1.0, product]})
    return product + sum(ray.get(made["held"]))


def fail_once(run: Run, folder: str, how: str) -> str:
    count(folder, "fail once")
    if counted(folder)["fail once"] == 1:
        if how == "dies":
            os._exit(1)
        if how == "hangs":
            time.sleep(600)
        raise ConnectionError("the service is away")
    return "well"


def refuse(run: Run, folder: str) -> None:
    count(folder, "refuse")
    raise DataError("the file is empty: give another")


class OddError(Exception):
    """Does not unpickle: its arguments are not those of its initialiser."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


def go_wrong(run: Run, how: str) -> None:
    if how == "KeyError":
        {"a": 1}["b"]
    if how == "OddError":
        raise OddError(7, "an odd error")
    if how == "SystemExit":
        raise SystemExit("no film\nleft")
    if how == "ray":
        ray.get(ray.remote(go_wrong).remote(run.id, "KeyError"))


def close(folder: str) -> None:
    count(folder, "closed")
