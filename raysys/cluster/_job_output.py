"""Live printing of a job's output.

Ray's stream of a job's output polls once a second in each of two processes, and notices the end of
the job after five seconds. So the beginning and the end are requested directly.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

_POLL_S = 0.25
_START_S = 30.0
# States of a job that has ended.
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# Ray's own lines, before the job's.
_PREAMBLE = ("Runtime env is setting up.", "Running entrypoint for job ")


class _Printer:
    """Prints the output; counts the characters printed so far."""

    def __init__(self) -> None:
        self.characters = 0

    def add(self, text: str, offset: int = 0) -> None:
        """Print the new characters of a part of the output that begins at an offset."""
        new = text[max(0, self.characters - offset) :]
        self.characters += len(new)
        sys.stdout.write(new)
        sys.stdout.flush()


async def follow(client: Any, job: str) -> None:
    """Print until the job has ended; reconnects after a broken connection."""
    printer = _Printer()
    if await _start(client, job, printer):
        return
    streaming = asyncio.create_task(_stream(client, job, printer))
    try:
        while not await _is_over(client, job):
            if streaming.done() and streaming.exception() is not None:
                streaming = asyncio.create_task(_stream(client, job, printer))
            await asyncio.sleep(2 * _POLL_S)
    finally:
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
    printer.add(await asyncio.to_thread(client.get_job_logs, job))


async def _start(client: Any, job: str, printer: _Printer) -> bool:
    """Poll until the job has printed its first own line; returns whether it has ended."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        is_over = await _is_over(client, job)
        text = await asyncio.to_thread(client.get_job_logs, job)
        printer.add(text)
        if is_over:
            return True
        if any(line and not any(mark in line for mark in _PREAMBLE) for line in text.splitlines()):
            return False
        await asyncio.sleep(_POLL_S)
    return False


async def _stream(client: Any, job: str, printer: _Printer) -> None:
    """Print Ray's stream, which starts at the first character, without what was printed before."""
    read = 0
    async for text in client.tail_job_logs(job):
        printer.add(text, read)
        read += len(text)


async def _is_over(client: Any, job: str) -> bool:
    status = await asyncio.to_thread(client.get_job_status, job)
    return str(getattr(status, "value", status)) in ENDED
