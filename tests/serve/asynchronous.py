"""Asynchronous tests of batches, without a plugin."""

import asyncio
import functools
import math
from collections.abc import Awaitable, Callable
from typing import Any

from raysys.serve import Array, RequestContext
from raysys.serve._batcher import Batcher

SAFETY_S = 20.0
INT = {"x": Array("int64")}
WHO = RequestContext("me", "00-1-2-00")


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """An asynchronous test as pytest takes it."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def main() -> None:
            await asyncio.wait_for(test(*args, **kwargs), SAFETY_S)

        asyncio.run(main())

    return run


def put(
    batcher: Batcher, *rows: Any, deadline: float = math.inf, who: RequestContext = WHO
) -> list[asyncio.Future[Any]]:
    return [batcher.submit_row((row,), deadline, who) for row in rows]
