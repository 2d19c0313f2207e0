"""Batches that end their process, or hold others up."""

import asyncio
from typing import Any

import pytest

from raysys.serve import Batching
from raysys.serve._batcher import Batcher
from raysys.serve._batching import DeadlineError, WorkerEndedError
from tests.serve.asynchronous import in_loop
from tests.serve.test_batcher import INT, Doubling, answers, put, turns

FATAL, HANGING, UNLUCKY = 13, 14, 15


class Fragile(Doubling):
    """A graph whose process ends at some rows; with `UNLUCKY` it is killed, `kills` times."""

    def __init__(self, held: bool = False, kills: int = 1) -> None:
        super().__init__(held)
        self.alone: list[list[int]] = []
        self.kills = kills

    async def __call__(self, columns: Any, contexts: Any, *, alone: bool = False) -> Any:
        rows = columns["x"].tolist()
        outputs = await super().__call__(columns, contexts)
        if alone:
            self.alone.append(rows)
        if FATAL in rows:
            raise WorkerEndedError("os._exit(1)")
        if HANGING in rows:
            raise WorkerEndedError("a batch hung", is_hung=True)
        if UNLUCKY in rows and self.kills:
            self.kills -= 1
            raise WorkerEndedError("")
        return outputs


@pytest.mark.parametrize(("row", "error"), [(FATAL, WorkerEndedError), (HANGING, DeadlineError)])
@in_loop
async def test_a_request_that_was_alone_is_not_tried_again(row: int, error: type) -> None:
    run = Fragile()
    (answer,) = await answers(put(Batcher(run, INT, Batching()), row))
    assert isinstance(answer, error)
    assert run.batches == [[row]]


@pytest.mark.parametrize(("row", "error"), [(FATAL, WorkerEndedError), (HANGING, DeadlineError)])
@in_loop
async def test_requests_of_a_batch_that_ended_its_process_are_tried_once_each_and_alone(
    row: int, error: type
) -> None:
    run = Fragile()
    found = await answers(put(Batcher(run, INT, Batching()), 1, row, 2))
    assert isinstance(found[1], error)
    assert (found[0], found[2]) == (2, 4)
    assert run.alone == [[1], [row], [2]]
    assert run.batches == [[1, row, 2], [1], [row], [2]]


@in_loop
async def test_a_batch_whose_process_was_killed_runs_again() -> None:
    run = Fragile()
    assert await answers(put(Batcher(run, INT, Batching()), 1, UNLUCKY)) == [2, 2 * UNLUCKY]
    assert run.batches == [[1, UNLUCKY], [1, UNLUCKY]]


@in_loop
async def test_a_batch_whose_process_was_killed_twice_is_suspected() -> None:
    run = Fragile(kills=9)
    found = await answers(put(Batcher(run, INT, Batching()), 1, UNLUCKY))
    assert found[0] == 2
    assert isinstance(found[1], WorkerEndedError)
    assert run.batches == [[1, UNLUCKY], [1, UNLUCKY], [1], [UNLUCKY]]


@in_loop
async def test_the_next_batch_runs_while_suspects_are_tried() -> None:
    run = Fragile(held=True)
    batcher = Batcher(run, INT, Batching())
    suspects = put(batcher, 1, FATAL)
    await run.began(1)
    others = put(batcher, 5)
    run.gates[0].set()
    await run.began(3)
    assert run.batches[0] == [1, FATAL]
    assert sorted(run.batches[1:3]) == [[1], [5]]
    assert not batcher.is_idle
    run.let_go()
    assert await answers(others) == [10]
    assert (await answers(suspects))[0] == 2


@in_loop
async def test_a_batch_that_takes_much_longer_than_usual_is_overtaken() -> None:
    run, idle = Fragile(held=True), False
    batcher = Batcher(run, INT, Batching(), patience_s=lambda: 0.01, can_overtake=lambda: idle)
    slow = put(batcher, 1)
    await run.began(1)
    quick = put(batcher, 2)
    await asyncio.sleep(0.1)
    await turns()
    assert run.batches == [[1]]  # there is no process for it
    idle = True
    await run.began(2)
    assert run.batches == [[1], [2]]
    run.gates[1].set()
    assert await answers(quick) == [4]
    run.let_go()
    assert await answers(slow) == [2]
