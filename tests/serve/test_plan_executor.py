"""Batches through a graph's own steps and those placed elsewhere."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from raysys.errors import DataError
from raysys.serve import Batching, Graph, Placement, RequestContext, current_requests
from raysys.serve._autoscaling import LoadEstimator
from raysys.serve._batcher import Batcher
from raysys.serve._column_types import Columns
from raysys.serve._plan_executor import PlanExecutor
from raysys.serve._request_context import running_requests
from tests.serve.asynchronous import INT, SAFETY_S, WHO, in_loop, put


class Elsewhere:
    """In place of Serve's handle of a deployment."""

    def __init__(self, answer: Callable[..., Awaitable[Columns]]) -> None:
        self.run = self
        self.remote = answer


def executor_of(graph: Graph, **handles: Elsewhere) -> PlanExecutor:
    async def run_own(
        number: int, values: Columns, rows: int, contexts: tuple[RequestContext, ...], alone: bool
    ) -> tuple[Columns, float]:
        step = graph.plan.steps[number]

        def run() -> Columns:
            with running_requests(contexts):
                results = graph.run(step.nodes, values)
            return {name: results[name] for name in step.gives}

        return await asyncio.to_thread(run), 0.0

    return PlanExecutor(graph, handles, run_own, LoadEstimator(1))


@in_loop
async def test_nodes_see_the_requests_of_their_batch_and_nobody_else_does() -> None:
    seen = []

    def y(x: np.ndarray) -> np.ndarray:
        seen.append(current_requests())
        return x

    graph = Graph(inputs=INT, nodes={"y": y}, output="y")
    batcher = Batcher(executor_of(graph), INT, Batching())
    a, b = RequestContext("a", ""), RequestContext("b", "")
    await asyncio.gather(*put(batcher, 1, who=a), *put(batcher, 2, who=b))
    await asyncio.gather(*put(batcher, 3, who=b))
    assert seen == [(a, b), (b,)]
    assert current_requests() == ()
    graph({"x": [1]})
    assert seen[-1] == ()


@in_loop
async def test_a_placed_node_gets_what_it_needs_and_the_requests() -> None:
    asked = []

    async def answer(number: int, values: Columns, contexts: tuple[RequestContext, ...]) -> Columns:
        asked.append((number, {name: v.tolist() for name, v in values.items()}, contexts))
        return {"far": 10 * values["near"]}

    nodes: dict[str, Callable[..., Any]] = {
        "near": lambda x: x + 1, "far": lambda near: near, "y": lambda near, far: near + far,
    }  # fmt: skip
    graph = Graph(inputs=INT, nodes=nodes, output="y", placement={"far": Placement()})
    found = await executor_of(graph, far=Elsewhere(answer))({"x": np.array([1, 2])}, (WHO,))
    assert isinstance(found, dict)
    assert found["y"].tolist() == [22, 33]
    assert asked == [(1, {"near": [2, 3]}, (WHO,))]


@in_loop
async def test_a_branch_elsewhere_and_one_here_run_at_once() -> None:
    here_ran = threading.Event()

    async def answer(number: int, values: Columns, contexts: object) -> Columns:
        assert await asyncio.to_thread(here_ran.wait, SAFETY_S)
        return {"far": values["x"]}

    def here(x: np.ndarray) -> np.ndarray:
        here_ran.set()
        return x

    nodes = {"far": lambda x: x, "here": here, "y": lambda far, here: far + here}
    graph = Graph(inputs=INT, nodes=nodes, output="y", placement={"far": Placement()})
    found = await executor_of(graph, far=Elsewhere(answer))({"x": np.array([1])}, ())
    assert isinstance(found, dict)
    assert found["y"].tolist() == [2]


@pytest.mark.parametrize("deaths", [0, 1, 3])
@in_loop
async def test_a_batch_whose_replica_dies_is_sent_again(deaths: int) -> None:
    from ray.exceptions import RayActorError

    left = iter([True] * deaths)

    async def answer(number: int, values: Columns, contexts: object) -> Columns:
        if next(left, False):
            raise RayActorError
        return {"y": values["x"]}

    nodes = {"y": lambda x: x}
    graph = Graph(inputs=INT, nodes=nodes, output="y", placement={"y": Placement()})
    found = await executor_of(graph, y=Elsewhere(answer))({"x": np.array([1])}, ())
    assert isinstance(found, dict)
    assert found["y"].tolist() == [1]


def test_a_batch_whose_replica_is_silent_is_sent_to_another_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from raysys.serve import _plan_executor

    monkeypatch.setattr(_plan_executor, "_HEDGE_MIN_S", 0.05)
    asked: list[int] = []

    async def answer(number: int, values: Columns, contexts: object) -> Columns:
        asked.append(number)
        if len(asked) == 2:  # the first tells how long a hop takes
            await asyncio.Event().wait()
        return {"y": values["x"]}

    async def main() -> None:
        nodes = {"y": lambda x: x}
        graph = Graph(inputs=INT, nodes=nodes, output="y", placement={"y": Placement()})
        executor = executor_of(graph, y=Elsewhere(answer))
        for times in (1, 3):
            found = await executor({"x": np.array([times])}, ())
            assert isinstance(found, dict)
            assert found["y"].tolist() == [times]
            assert len(asked) == times

    asyncio.run(asyncio.wait_for(main(), SAFETY_S))


async def _failing(nodes: dict[str, Callable[..., Any]], **handles: Elsewhere) -> Any:
    """What a request is told by a graph that fails."""
    placement = {name: Placement() for name in handles}
    graph = Graph(inputs=INT, nodes=nodes, output="y", placement=placement)
    (told,) = put(Batcher(executor_of(graph, **handles), INT, Batching()), 1)
    return (await asyncio.gather(told, return_exceptions=True))[0]


@in_loop
async def test_an_error_of_a_node_reaches_its_request_as_it_is() -> None:
    def y(x: np.ndarray) -> np.ndarray:
        raise DataError("x: too old")

    error = await _failing({"y": y})
    assert isinstance(error, DataError)
    assert error.__notes__ == ["in node 'y'"]


@in_loop
async def test_an_error_in_a_graph_of_several_steps_reaches_its_request_as_it_is() -> None:
    async def answer(number: int, values: Columns, contexts: object) -> Columns:
        raise DataError("x: too old")

    error = await _failing({"far": lambda x: x, "y": lambda far: far}, far=Elsewhere(answer))
    assert isinstance(error, DataError)


@in_loop
async def test_a_node_that_raises_stop_iteration_does_not_block_its_replica() -> None:
    lost = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda *_: lost.set())
    asked = asyncio.create_task(_failing({"y": lambda x: next(iter([]))}))
    nobody_told = asyncio.create_task(lost.wait())
    await asyncio.wait([asked, nobody_told], return_when=asyncio.FIRST_COMPLETED)
    assert not lost.is_set()
    assert isinstance(await asked, Exception)
