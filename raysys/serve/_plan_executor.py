"""The executor of a serving plan: a batch through the entry's steps and those placed elsewhere."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError, RayTaskError

from raysys.cluster import task_error_cause
from raysys.serve._compiler import ENTRY, BatchStep
from raysys.serve._outputs import Outputs, as_outputs

if TYPE_CHECKING:
    from raysys.serve._autoscaling import LoadEstimator
    from raysys.serve._column_types import Columns
    from raysys.serve._graph import Graph
    from raysys.serve._request_context import RequestContext

_MAX_ATTEMPTS = 4
_HEDGE_MIN_S, _HEDGE_FACTOR = 1.0, 5.0
_SMOOTHING = 8  # batches
_log = logging.getLogger("raysys.serve")

RunOwn = Callable[
    [int, "Columns", int, "tuple[RequestContext, ...]", bool],
    Awaitable["tuple[Columns, float]"],
]


class PlanExecutor:
    """Runs the steps of a plan over a batch: the entry's by `run_own`, others by Serve's handles.

    `run_own` takes the step's number, its values, the batch's rows and requests, and whether the
    batch is suspected of ending its process; it returns the step's values and its seconds.
    """

    def __init__(
        self, graph: Graph, handles: Mapping[str, Any], run_own: RunOwn, load: LoadEstimator
    ) -> None:
        self._graph, self._handles, self._run_own, self._load = graph, handles, run_own, load
        self._steps = graph.plan.steps
        self._hop_s: dict[int, float] = {}  # smoothed time of a remote step

    async def __call__(
        self, columns: Columns, contexts: tuple[RequestContext, ...], *, alone: bool = False
    ) -> Outputs:
        """The outputs of a batch; `alone` keeps it from the processes that other batches need."""
        rows, spent = len(next(iter(columns.values()))), list[float]()

        async def run_own(number: int, needs: Columns) -> Columns:
            values, seconds = await self._run_own(number, needs, rows, contexts, alone)
            spent.append(seconds)
            return values

        if len(self._steps) == 1 and self._steps[0].stage == ENTRY:
            values = await run_own(0, columns)
        else:
            values = await self._all_steps(columns, contexts, run_own)
        self._load.batch(rows, sum(spent))
        return as_outputs(self._graph.output, values[self._graph.output], rows)

    async def _all_steps(
        self, columns: Columns, contexts: tuple[RequestContext, ...],
        run_own: Callable[[int, Columns], Awaitable[Columns]],
    ) -> Columns:  # fmt: skip
        """Run each step when the steps before it have finished."""
        values = dict(columns)
        tasks: list[asyncio.Task[None]] = []

        async def run_step(number: int, step: BatchStep) -> None:
            await asyncio.gather(*(tasks[before] for before in step.after))
            needs = {name: values[name] for name in step.needs}
            if step.stage == ENTRY:
                values.update(await run_own(number, needs))
            else:
                values.update(await self._remote(number, step, needs, contexts))

        try:
            async with asyncio.TaskGroup() as group:
                for number, step in enumerate(self._steps):
                    tasks.append(group.create_task(run_step(number, step)))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None  # the others were only cancelled
        return values

    async def _remote(
        self, number: int, step: BatchStep, values: Columns, contexts: tuple[RequestContext, ...]
    ) -> Columns:
        """Run a remote step, hedged: if the first replica is slow, a second gets the batch too.

        A replica behind a broken link is silent until Ray declares its node dead, after a minute.
        """
        hop = asyncio.create_task(self._hop(number, step, values, contexts))
        timeout_s = max(_HEDGE_MIN_S, _HEDGE_FACTOR * self._hop_s.get(number, math.inf))
        await asyncio.wait([hop], timeout=None if math.isinf(timeout_s) else timeout_s)
        if hop.done():
            return hop.result()
        _log.warning(
            "%s has not answered for %.1f s; its batch is sent to another replica",
            step.stage, timeout_s,
        )  # fmt: skip
        pending = {hop, asyncio.create_task(self._hop(number, step, values, contexts))}
        while True:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.exception() is None or not pending:
                    for late in pending:
                        late.add_done_callback(asyncio.Task.exception)  # result is not needed
                    return task.result()

    async def _hop(
        self, number: int, step: BatchStep, values: Columns, contexts: tuple[RequestContext, ...]
    ) -> Columns:
        """One call of another deployment, retried if its replica dies."""
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            started = time.perf_counter()
            try:
                results = await self._handles[step.stage].run.remote(number, values, contexts)
                _smooth(self._hop_s, number, time.perf_counter() - started)
                return results
            except RayTaskError as error:
                raise task_error_cause(error) from None  # the node's own error
            except RayActorError as error:
                if attempt == _MAX_ATTEMPTS:
                    raise
                _log.warning(
                    "a replica of %s died during a batch (%s); attempt %d of %d",
                    step.stage, type(error).__name__, attempt + 1, _MAX_ATTEMPTS,
                )  # fmt: skip
        raise AssertionError


def _smooth(averages: dict[Any, float], key: Any, seconds: float) -> None:
    """Update a moving average."""
    average = averages.get(key, seconds)
    averages[key] = average + (seconds - average) / _SMOOTHING
