"""Printing a job's output as it comes.

Ray's stream of a job's output looks for new lines once a second in each of two processes, and
notices the job's end five seconds after it. So the beginning and the end are asked for.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

_POLL_S = 0.25
_BEGINNING_S = 30.0
# States of a job that has ended.
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# Ray's own lines, before the job's.
_PREAMBLE = ("Runtime env is setting up.", "Running entrypoint for job ")


class _Shown:
    """How much of the output has been printed."""

    def __init__(self) -> None:
        self.characters = 0

    def add(self, text: str, begins_at: int = 0) -> None:
        """Print what is new in a part of the output that begins at some character."""
        new = text[max(0, self.characters - begins_at) :]
        self.characters += len(new)
        sys.stdout.write(new)
        sys.stdout.flush()


async def follow(client: Any, job: str) -> None:
    """Print until the job has ended; a connection that breaks is made again."""
    shown = _Shown()
    if await _beginning(client, job, shown):
        return
    streaming = asyncio.create_task(_stream(client, job, shown))
    try:
        while not await _is_over(client, job):
            if streaming.done() and streaming.exception() is not None:
                streaming = asyncio.create_task(_stream(client, job, shown))
            await asyncio.sleep(2 * _POLL_S)
    finally:
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
    shown.add(await asyncio.to_thread(client.get_job_logs, job))


async def _beginning(client: Any, job: str, shown: _Shown) -> bool:
    """Poll until the job itself has printed something; whether it has ended by then."""
    deadline = time.monotonic() + _BEGINNING_S
    while time.monotonic() < deadline:
        is_over = await _is_over(client, job)
        text = await asyncio.to_thread(client.get_job_logs, job)
        shown.add(text)
        if is_over:
            return True
        if any(line and not _is_preamble(line) for line in text.splitlines()):
            return False
        await asyncio.sleep(_POLL_S)
    return False


async def _stream(client: Any, job: str, shown: _Shown) -> None:
    """Print what Ray streams, less what has been printed: it begins at the beginning."""
    read = 0
    async for text in client.tail_job_logs(job):
        shown.add(text, read)
        read += len(text)


async def _is_over(client: Any, job: str) -> bool:
    status = await asyncio.to_thread(client.get_job_status, job)
    return str(getattr(status, "value", status)) in ENDED


def _is_preamble(line: str) -> bool:
    return any(mark in line for mark in _PREAMBLE)
