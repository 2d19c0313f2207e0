"""The executor of a serving plan: a batch through the entry's steps and those placed elsewhere."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError, RayTaskError

from raysys.cluster import task_error_cause
from raysys.serve._compiler import ENTRY, BatchStep
from raysys.serve._outputs import Outputs, as_outputs
from raysys.serve._request_context import RequestContext, running_requests

if TYPE_CHECKING:
    from raysys.serve._autoscaling import LoadEstimator
    from raysys.serve._column_types import Columns
    from raysys.serve._graph import Graph
    from raysys.serve._metrics import Metrics

_MAX_ATTEMPTS = 4
_HEDGE_MIN_S, _HEDGE_FACTOR = 1.0, 5.0
_BRIEF_S = 0.002
_SMOOTHING = 8  # batches
_log = logging.getLogger("raysys.serve")


class PlanExecutor:
    """Runs the steps of a plan over a batch: the entry's here, the others through Serve's handles.

    Steps of the entry run in threads, so that requests are read meanwhile. If all cores are busy a
    thread only adds context switches, so brief steps then run on the event loop.

    Attributes:
        is_crowded: Whether all cores of the machine are busy, set by the owner.
    """

    def __init__(
        self, graph: Graph, handles: Mapping[str, Any], metrics: Metrics, load: LoadEstimator
    ) -> None:
        self._graph, self._handles, self._metrics, self._load = graph, handles, metrics, load
        self._steps = graph.plan.steps
        self.is_crowded = False
        self._local_s: dict[tuple[str, ...], float] = {}  # smoothed time of a local step
        self._hop_s: dict[int, float] = {}  # smoothed time of a remote step
        self._threads = concurrent.futures.ThreadPoolExecutor(
            graph.plan.in_flight, thread_name_prefix="graph"
        )

    async def __call__(self, columns: Columns, contexts: tuple[RequestContext, ...]) -> Outputs:
        """The outputs of a batch."""
        rows, spent = len(next(iter(columns.values()))), list[float]()
        if len(self._steps) == 1 and self._steps[0].stage == ENTRY:
            values = await self._local(self._steps[0], columns, contexts, spent)
        else:
            values = await self._all_steps(columns, contexts, spent)
        self._load.batch(rows, sum(spent))
        return as_outputs(self._graph.output, values[self._graph.output], rows)

    async def _all_steps(
        self, columns: Columns, contexts: tuple[RequestContext, ...], spent: list[float]
    ) -> Columns:
        """Run each step when the steps before it have finished."""
        values = dict(columns)
        tasks: list[asyncio.Task[None]] = []

        async def run_step(number: int, step: BatchStep) -> None:
            await asyncio.gather(*(tasks[before] for before in step.after))
            needs = {name: values[name] for name in step.needs}
            if step.stage == ENTRY:
                values.update(await self._local(step, needs, contexts, spent))
            else:
                values.update(await self._remote(number, step, needs, contexts))

        try:
            async with asyncio.TaskGroup() as group:
                for number, step in enumerate(self._steps):
                    tasks.append(group.create_task(run_step(number, step)))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None  # the others were only cancelled
        return values

    async def _local(
        self, step: BatchStep, values: Columns, contexts: tuple[RequestContext, ...],
        spent: list[float],
    ) -> Columns:  # fmt: skip
        if self.is_crowded and self._local_s.get(step.nodes, math.inf) < _BRIEF_S:
            return self._run(step, values, contexts, spent)
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._run, step, values, contexts, spent
        )

    def _run(
        self, step: BatchStep, values: Columns, contexts: tuple[RequestContext, ...],
        spent: list[float],
    ) -> Columns:  # fmt: skip
        started = time.perf_counter()
        with running_requests(contexts):
            results = self._graph.run(step.nodes, values, self._metrics.node)
        seconds = time.perf_counter() - started
        spent.append(seconds)
        _smooth(self._local_s, step.nodes, seconds)
        return results

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
