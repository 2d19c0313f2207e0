"""Long bodies over all connections."""

import asyncio

import pytest

from raysys.serve.http import _body_budget
from raysys.serve.http._body_budget import BodyBudget, HeldBody
from tests.serve.asynchronous import in_loop


class Bodies:
    """Bodies by number, and the status with which each was refused."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.refused: dict[int, int] = {}
        self.bodies: dict[int, HeldBody] = {}

    def grow(self, number: int, size: int) -> None:
        def refuse(status: int, _: str) -> None:
            self.refused[number] = status

        self._budget.grow(self.bodies.setdefault(number, HeldBody(refuse)), size)


def test_the_body_that_is_silent_for_longest_makes_room() -> None:
    bodies = Bodies(BodyBudget(100))
    for number in (1, 2, 3):
        bodies.grow(number, 30)
    bodies.grow(1, 40)
    assert bodies.refused == {}
    bodies.grow(3, 50)
    assert bodies.refused == {2: 408}
    bodies.grow(4, 10)
    assert bodies.refused == {2: 408}


def test_complete_bodies_are_answered_and_a_new_one_waits() -> None:
    budget = BodyBudget(100)
    bodies = Bodies(budget)
    for number in (1, 2):
        bodies.grow(number, 50)
        bodies.bodies[number].is_complete = True
    bodies.grow(3, 1)
    assert bodies.refused == {3: 503}
    budget.end(bodies.bodies[1])
    bodies.grow(4, 50)
    assert bodies.refused == {3: 503}


@in_loop
async def test_a_body_that_trickles_in_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_body_budget, "_RECEIVE_S", 0.05)
    monkeypatch.setattr(_body_budget, "_LOOK_S", 0.01)
    budget = BodyBudget(1 << 30)
    bodies = Bodies(budget)
    bodies.grow(1, 1000)
    bodies.grow(2, 64 << 20)  # which has 1,024 seconds
    bodies.grow(3, 1000)
    bodies.bodies[3].is_complete = True
    watching = asyncio.create_task(budget.watch())
    while not bodies.refused:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    watching.cancel()
    assert bodies.refused == {1: 408}
