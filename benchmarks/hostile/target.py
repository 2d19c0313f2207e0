"""The application that is attacked; replicas import this, so it is light."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np  # noqa: TC002 - nodes say what they take
from pydantic import BaseModel

from raysys import serve

if TYPE_CHECKING:
    from collections.abc import Callable

ROOM_ROWS = 20
_SECONDS = 25


def _raise(error: BaseException) -> None:
    raise error


# What a node may do to its process, by the number in the request.
DEEDS: dict[int, Callable[[], object]] = {
    1: lambda: os._exit(1),
    2: lambda: ctypes.string_at(0),
    3: lambda: _raise(SystemExit(1)),
    4: lambda: _raise(KeyboardInterrupt()),
    5: lambda: _raise(asyncio.CancelledError()),
    6: lambda: time.sleep(_SECONDS),
    7: lambda: ctypes.PyDLL(None).sleep(_SECONDS),  # without letting other threads run
}


class Row(BaseModel):
    """A list of numbers, and a deed; 0 is none."""

    x: list[float]
    deed: int = 0


def mean(x: np.ndarray, deed: np.ndarray) -> dict[str, Any]:
    """The mean of each row, and the process."""
    for number in deed.tolist():
        DEEDS.get(number, int)()
    return {"mean": x.mean(axis=1), "pid": [os.getpid()] * len(x)}


def graph() -> serve.Graph:
    """Lists of numbers to their mean."""
    return serve.Graph(inputs=Row, nodes={"mean": mean}, output="mean")
