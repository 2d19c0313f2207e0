"""Asynchronous tests without a plugin."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

SAFETY_S = 20.0


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """An asynchronous test as pytest takes it."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def main() -> None:
            await asyncio.wait_for(test(*args, **kwargs), SAFETY_S)

        asyncio.run(main())

    return run
