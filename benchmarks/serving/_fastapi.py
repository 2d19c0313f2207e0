"""The yardstick by hand: FastAPI on uvicorn with a micro-batcher that never waits.

`python -m benchmarks.serving._fastapi '{"folder": ..., "port": ..., "processes": 1, "ready": ...}'`
"""

import asyncio
import gc
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field

from benchmarks.serving.yardstick import FEATURES, Yardstick

MAX_BATCH = 64
FOLDER, READY = "YARDSTICK_FOLDER", "YARDSTICK_READY"


class Question(BaseModel):
    """The body of a request."""

    x: Annotated[list[float], Field(min_length=FEATURES, max_length=FEATURES)]


class Answer(BaseModel):
    """The body of a response."""

    y: float


class Batcher:
    """Gives the model whatever waits when it is free.

    Args:
        model: Rows `(n, 64)` -> `(n,)`; called in one thread.
    """

    def __init__(self, model: Callable[[np.ndarray], np.ndarray]) -> None:
        self._model = model
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[tuple[list[float], asyncio.Future[float]]] = []
        self._free = True

    async def __call__(self, x: list[float]) -> float:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[float] = loop.create_future()
        self._waiting.append((x, answer))
        if self._free:
            self._free = False
            # Once round the loop first: what came in the same moment goes with this batch.
            loop.call_soon(self._start, loop)
        return await answer

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._waiting:
            self._free = True
            return
        batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        rows, answers = [x for x, _ in batch], [answer for _, answer in batch]
        work = loop.run_in_executor(self._thread, self._run, rows)
        work.add_done_callback(lambda done: self._finish(loop, done, answers))

    def _run(self, rows: list[list[float]]) -> list[float]:
        return self._model(np.array(rows)).tolist()

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        done: asyncio.Future[list[float]],
        answers: list[asyncio.Future[float]],
    ) -> None:
        self._start(loop)  # the model is never idle while somebody waits
        error = done.exception()
        for i, answer in enumerate(answers):
            if answer.cancelled():
                continue
            if error:
                answer.set_exception(error)
            else:
                answer.set_result(done.result()[i])


def app() -> FastAPI:
    """The application, for uvicorn, in each of its processes."""
    batchers: list[Batcher] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batchers.append(Batcher(Yardstick(os.environ[FOLDER])))
        gc.collect()
        gc.freeze()  # else each full collection walks all that torch imported: 0.2 s
        Path(os.environ[READY], str(os.getpid())).touch()
        yield

    served = FastAPI(lifespan=lifespan)

    @served.post("/", response_model=Answer)
    async def predict(question: Question) -> Answer:
        return Answer(y=await batchers[0](question.x))

    return served


def main() -> None:
    settings = json.loads(sys.argv[1])
    os.environ |= {FOLDER: settings["folder"], READY: settings["ready"]}
    uvicorn.run(
        "benchmarks.serving._fastapi:app",
        factory=True,
        host="127.0.0.1",
        port=settings["port"],
        workers=settings["processes"],
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
