import asyncio
import collections
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import DataError
from raysys.serve import Array, Batching, RequestContext, _batcher
from raysys.serve._batcher import Batcher
from raysys.serve._batching import DeadlineError, OverloadedError, TooManyRowsError
from raysys.serve._column_types import Columns
from tests.serve.asynchronous import INT, SAFETY_S, WHO, in_loop, put


async def turns(count: int = 10) -> None:
    """Let whatever is ready run; timers stand still."""
    for _ in range(count):
        await asyncio.sleep(0)


class Doubling:
    """A graph whose batches end when the test says so; negative rows are bad."""

    def __init__(self, held: bool = True) -> None:
        self.batches: list[list[int]] = []
        self.columns: list[Columns] = []
        self.contexts: list[tuple[RequestContext, ...]] = []
        self.gates: list[asyncio.Event] = []
        self._held = held
        self._began = asyncio.Condition()

    async def __call__(
        self, columns: Columns, contexts: tuple[RequestContext, ...], *, alone: bool = False
    ) -> Any:
        x = columns["x"]
        self.batches.append(x.tolist())
        self.columns.append(columns)
        self.contexts.append(contexts)
        gate = asyncio.Event()
        self.gates.append(gate)
        async with self._began:
            self._began.notify_all()
        if self._held:
            await gate.wait()
        if (x < 0).any():
            raise ValueError(f"bad {x[x < 0].tolist()}")
        return {"y": 2 * x, "text": [str(value) for value in x.tolist()]}

    async def began(self, count: int) -> None:
        """Wait for the start of a batch."""
        async with self._began:
            await self._began.wait_for(lambda: len(self.batches) >= count)

    def let_go(self) -> None:
        """End what runs, and all that comes."""
        self._held = False
        for gate in self.gates:
            gate.set()


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(_batcher, "time", made)
    return made


async def answers(futures: list[asyncio.Future[Any]]) -> list[Any]:
    """Of each row: its doubled value, or the error."""
    found = await asyncio.gather(*futures, return_exceptions=True)
    return [one if isinstance(one, BaseException) else one["y"].tolist()[0] for one in found]


async def bulk(batcher: Batcher, rows: Any, who: RequestContext = WHO) -> Any:
    x = np.array(rows)
    return await batcher.submit_columns({"x": x}, len(x), math.inf, who)


@in_loop
async def test_a_lone_request_starts_at_once_without_a_timer() -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching())
    futures = put(batcher, 7)
    await turns(3)
    assert run.batches == [[7]]
    run.let_go()
    assert await answers(futures) == [14]
    assert run.columns[0]["x"].dtype == np.int64


@in_loop
async def test_requests_of_one_turn_of_the_loop_share_a_batch() -> None:
    run = Doubling(held=False)
    futures = put(Batcher(run, INT, Batching()), 1, 2, 3)
    assert await answers(futures) == [2, 4, 6]
    assert run.batches == [[1, 2, 3]]


@in_loop
async def test_what_queues_up_while_one_runs_is_the_next_batch_in_the_order_it_came() -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching())
    futures = put(batcher, 1)
    await run.began(1)
    for row in (5, 3, 4):
        futures += put(batcher, row)
        await turns()
    assert run.batches == [[1]]
    assert batcher.rows_queued == 3
    run.let_go()
    assert await answers(futures) == [2, 10, 6, 8]
    assert run.batches == [[1], [5, 3, 4]]
    assert batcher.rows_queued == 0


@in_loop
async def test_a_batch_holds_no_more_rows_than_it_may() -> None:
    run = Doubling(held=False)
    futures = put(Batcher(run, INT, Batching(max_batch_size=4)), *range(10))
    assert await answers(futures) == [2 * row for row in range(10)]
    assert [len(batch) for batch in run.batches] == [4, 4, 2]


@in_loop
async def test_a_batch_costs_no_more_than_it_may_and_what_costs_more_goes_alone() -> None:
    run = Doubling(held=False)
    batcher = Batcher(run, INT, Batching(cost_fn=lambda row: row["x"], max_batch_cost=10))
    await answers(put(batcher, 6, 4, 1, 20, 3, 7, 1))
    assert run.batches == [[6, 4], [1], [20], [3, 7], [1]]


@in_loop
async def test_rows_of_unequal_length_do_not_share_a_batch() -> None:
    run = Doubling(held=False)
    batcher = Batcher(run, {"x": Array("int64", (None,))}, Batching())
    await asyncio.gather(*put(batcher, [1, 2], [3, 4], [5], [6], [7, 8]), bulk(batcher, [[9, 9]]))
    assert run.batches == [[[1, 2], [3, 4]], [[5], [6]], [[7, 8], [9, 9]]]


@pytest.mark.parametrize(
    "bad", [{0}, {3}, {7}, {0, 7}, {2, 3, 5}, set(range(1, 8)), set(range(8))], ids=str
)
@in_loop
async def test_bad_rows_fail_alone_and_their_neighbours_are_answered(bad: set[int]) -> None:
    run = Doubling(held=False)
    rows = [-1 - row if row in bad else row for row in range(8)]
    found = await answers(put(Batcher(run, INT, Batching()), *rows))
    assert run.batches[0] == rows
    for row, answer in zip(rows, found, strict=True):
        if row < 0:
            assert isinstance(answer, ValueError)
            assert str(answer) == f"bad [{row}]"
        else:
            assert answer == 2 * row


@in_loop
async def test_a_bulk_request_with_a_bad_row_fails_whole_and_its_neighbours_do_not() -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching())
    first = put(batcher, 0)
    await run.began(1)
    before, many = put(batcher, 1), asyncio.create_task(bulk(batcher, [2, -3, 4]))
    await turns()
    after = put(batcher, 5)
    run.let_go()
    assert await answers(first + before + after) == [0, 2, 10]
    assert run.batches[1] == [1, 2, -3, 4, 5]
    with pytest.raises(ValueError, match="bad"):
        await many


@in_loop
async def test_bulk_columns_are_cut_and_joined_in_order_whichever_piece_ends_first() -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching(max_batch_size=4), in_flight=3)
    many = asyncio.create_task(bulk(batcher, range(10)))
    await run.began(3)
    assert sorted(map(len, run.batches)) == [2, 4, 4]
    for gate in reversed(run.gates):
        gate.set()
        await turns()
    found = await many
    assert found["y"].tolist() == [2 * row for row in range(10)]
    assert found["text"] == [str(row) for row in range(10)]


@in_loop
async def test_bulk_columns_are_cut_by_cost() -> None:
    run = Doubling(held=False)
    batcher = Batcher(run, INT, Batching(cost_fn=lambda row: row["x"], max_batch_cost=10))
    found = await bulk(batcher, [6, 4, 1, 20, 3])
    assert found["y"].tolist() == [12, 8, 2, 40, 6]
    assert run.batches == [[6, 4], [1], [20], [3]]


@in_loop
async def test_rows_and_bulk_columns_share_a_batch_in_the_order_of_the_inputs() -> None:
    run = Doubling()
    batcher = Batcher(run, {"z": Array("str"), **INT}, Batching())
    running = batcher.submit_row(("a", 1), math.inf, WHO)
    await run.began(1)
    columns = {"x": np.array([3, 4]), "z": np.array(["c", "d"], object)}
    row = batcher.submit_row(("b", 2), math.inf, WHO)
    many = asyncio.create_task(batcher.submit_columns(columns, 2, math.inf, WHO))
    await turns()
    run.let_go()
    assert [(await one)["y"].tolist() for one in (running, row, many)] == [[2], [4], [6, 8]]
    assert run.batches == [[1], [2, 3, 4]]
    assert list(run.columns[1]) == ["z", "x"]
    assert run.columns[1]["z"].tolist() == ["b", "c", "d"]


@in_loop
async def test_answers_that_are_rows_go_to_their_requests() -> None:
    async def run(columns: Columns, contexts: tuple[RequestContext, ...], *, alone: bool) -> Any:
        return [{"k": value} for value in columns["x"].tolist()]

    batcher = Batcher(run, INT, Batching(max_batch_size=2))
    rows = put(batcher, 1, 2, 3)
    assert await bulk(batcher, [4, 5, 6]) == [{"k": 4}, {"k": 5}, {"k": 6}]
    assert await asyncio.gather(*rows) == [[{"k": 1}], [{"k": 2}], [{"k": 3}]]


@in_loop
async def test_a_deadline_that_passes_in_the_queue_is_told_and_the_row_never_runs(
    clock: Clock,
) -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching())
    first = put(batcher, 1)
    await run.began(1)
    (late,) = put(batcher, 2, deadline=clock.now + 1)
    (patient,) = put(batcher, 3, deadline=clock.now + 100)
    clock.now += 2
    with pytest.raises(DeadlineError):
        await late
    assert not patient.done()
    run.let_go()
    assert await answers([*first, patient]) == [2, 6]
    assert run.batches == [[1], [3]]


@in_loop
async def test_a_deadline_that_passes_while_the_row_runs_is_told_and_harms_nobody(
    clock: Clock,
) -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching())
    (late,) = put(batcher, 1, deadline=clock.now + 1)
    (patient,) = put(batcher, 2)
    await run.began(1)
    clock.now += 2
    with pytest.raises(DeadlineError):
        await late
    run.let_go()
    assert await answers([patient, *put(batcher, 3)]) == [4, 6]
    assert run.batches == [[1, 2], [3]]


@in_loop
async def test_a_deadline_that_has_passed_already_is_told_without_a_run(clock: Clock) -> None:
    run = Doubling(held=False)
    batcher = Batcher(run, INT, Batching())
    with pytest.raises(DeadlineError):
        await put(batcher, 1, deadline=clock.now - 1)[0]
    assert run.batches == []
    assert batcher.is_idle


@in_loop
async def test_a_request_that_writes_is_one_batch_of_its_own() -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching(max_batch_size=2, max_write_rows=5), writes=True)
    rows = put(batcher, 1, 2)
    await run.began(1)
    many = asyncio.create_task(bulk(batcher, range(10, 15)))
    await turns()
    assert batcher.rows_queued == 2  # as one batch, so that others find room
    rows += put(batcher, 3)
    run.let_go()
    assert (await many)["y"].tolist() == [20, 22, 24, 26, 28]
    assert await answers(rows) == [2, 4, 6]
    assert run.batches == [[1, 2], [10, 11, 12, 13, 14], [3]]
    assert batcher.rows_queued == 0
    with pytest.raises(TooManyRowsError, match="6 rows in one request, at most 5 are changed"):
        await bulk(batcher, range(6))
    assert len(run.batches) == 3
    await bulk(Batcher(Doubling(held=False), INT, Batching(max_write_rows=5)), range(6))


@in_loop
async def test_a_failed_request_that_writes_is_tried_whole() -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching(max_batch_size=4), writes=True)
    (first,) = put(batcher, 1)
    await run.began(1)
    many = [asyncio.create_task(bulk(batcher, x)) for x in ([5, -6], [7, 8])]
    await turns()
    run.let_go()
    bad, good = await asyncio.gather(*many, return_exceptions=True)
    assert isinstance(bad, ValueError)
    assert good["y"].tolist() == [14, 16]
    assert await answers([first]) == [2]
    assert run.batches == [[1], [5, -6, 7, 8], [5, -6], [7, 8]]


@in_loop
async def test_a_late_request_that_writes_is_told_whether_it_had_begun(clock: Clock) -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching(max_batch_size=1), writes=True)
    begun, queued = put(batcher, 1, 2, deadline=clock.now + 1)
    await run.began(1)
    clock.now += 2
    with pytest.raises(DeadlineError, match="it has begun, and may still be applied as a whole"):
        await begun
    with pytest.raises(DeadlineError, match="it had not begun, nothing was changed"):
        await queued
    run.let_go()
    assert await answers(put(batcher, 3)) == [6]
    assert run.batches == [[1], [3]]


@in_loop
async def test_a_full_queue_refuses_until_there_is_room() -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching(max_batch_size=2, max_queued_rows=3))
    futures = put(batcher, 1)
    await run.began(1)
    futures += put(batcher, 2, 3, 4)
    with pytest.raises(OverloadedError):
        put(batcher, 5)
    assert batcher.rows_queued == 3
    run.gates[0].set()
    await run.began(2)
    futures += put(batcher, 6, 7)
    with pytest.raises(OverloadedError):
        await bulk(batcher, [8])
    run.let_go()
    assert await answers(futures) == [2, 4, 6, 8, 12, 14]


@in_loop
async def test_a_bulk_request_longer_than_the_queue_is_taken_and_others_come_in_between() -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching(max_batch_size=2, max_queued_rows=10))
    many = asyncio.create_task(bulk(batcher, range(100, 140)))
    await run.began(1)
    await turns()
    (lone,) = put(batcher, 7)
    run.let_go()
    assert await answers([lone]) == [14]
    assert not many.done()
    assert (await many)["y"].tolist() == [2 * row for row in range(100, 140)]


def test_the_queue_is_sixteen_batches_by_default() -> None:
    assert Batching(max_batch_size=8).queue_limit == 128
    assert Batching(max_batch_size=8, max_queued_rows=5).queue_limit == 5


@in_loop
async def test_a_hopeless_deadline_is_refused_at_once_with_the_time_to_wait(clock: Clock) -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching(max_batch_size=2))
    put(batcher, 1)
    await run.began(1)
    clock.now += 2  # what a batch takes
    run.gates[0].set()
    await turns()
    futures = put(batcher, 2, deadline=clock.now + 1)  # nothing runs, so it may be in time
    await run.began(2)
    with pytest.raises(OverloadedError) as refused:
        put(batcher, 3, deadline=clock.now + 3)
    assert refused.value.retry_after_s == 4  # the batch under way and its own
    futures += put(batcher, 3, 4, deadline=clock.now + 100)
    with pytest.raises(OverloadedError) as refused:
        put(batcher, 5, deadline=clock.now + 4)
    assert refused.value.retry_after_s == 6
    run.let_go()
    assert await answers(futures) == [4, 6, 8]


@in_loop
async def test_the_capacity_shrinks_to_what_slow_batches_answer_in_time(clock: Clock) -> None:
    batching = Batching(max_batch_size=10, max_queued_rows=100)
    batch_s = 0.0

    async def run(columns: Columns, contexts: tuple[RequestContext, ...], *, alone: bool) -> Any:
        clock.now += batch_s
        return {"y": columns["x"]}

    async def capacity(seconds: float) -> int:
        nonlocal batch_s
        batch_s, batcher = seconds, Batcher(run, INT, batching, in_flight=2)
        assert batcher.capacity(6.0) == 120  # a full queue and what runs, as nothing is known
        await answers(put(batcher, 1))
        return batcher.capacity(6.0)

    assert await capacity(0.001) == 120
    assert 40 < await capacity(0.7) < 120
    assert await capacity(60.0) == 40  # twice what runs


@in_loop
async def test_the_size_of_batches_follows_their_target_time(clock: Clock) -> None:
    milliseconds = iter([200] * 5 + [10] * 100)
    sizes: list[int] = []

    async def run(columns: Columns, contexts: tuple[RequestContext, ...], *, alone: bool) -> Any:
        sizes.append(len(columns["x"]))
        clock.now += next(milliseconds) / 1000
        return {"y": columns["x"]}

    batcher = Batcher(
        run, INT, Batching(max_batch_size=10, target_latency_ms=100, max_queued_rows=1000)
    )
    await answers(put(batcher, *range(100)))
    assert sizes[:13] == [10, 9, 8, 7, 6, 5, 6, 7, 8, 9, 10, 10, 5]


@in_loop
async def test_batches_that_are_always_too_slow_shrink_to_one_row(clock: Clock) -> None:
    sizes: list[int] = []

    async def run(columns: Columns, contexts: tuple[RequestContext, ...], *, alone: bool) -> Any:
        sizes.append(len(columns["x"]))
        clock.now += 1
        return {"y": columns["x"]}

    batcher = Batcher(
        run, INT, Batching(max_batch_size=4, target_latency_ms=100, max_queued_rows=1000)
    )
    assert await answers(put(batcher, *range(60))) == list(range(60))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1


@in_loop
async def test_small_batches_that_are_fast_do_not_raise_the_size(clock: Clock) -> None:
    run = Doubling(held=False)
    batcher = Batcher(run, INT, Batching(max_batch_size=10, target_latency_ms=100))

    async def slow(columns: Columns, contexts: tuple[RequestContext, ...], *, alone: bool) -> Any:
        clock.now += 1
        return await run(columns, contexts)

    batcher._run = slow
    await answers(put(batcher, 1))
    batcher._run = run
    for _ in range(5):
        await answers(put(batcher, 1))
    run.batches.clear()
    await answers(put(batcher, *range(10)))
    assert [len(batch) for batch in run.batches] == [9, 1]


@in_loop
async def test_two_in_flight_run_two_batches_at_once_and_not_three() -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching(), in_flight=2)
    futures = []
    for row in range(3):
        futures += put(batcher, row)
        await turns()
    assert run.batches == [[0], [1]]
    run.gates[1].set()
    await run.began(3)
    assert run.batches[2] == [2]
    assert (futures[0].done(), futures[1].done()) == (False, True)
    run.let_go()
    assert await answers(futures) == [0, 2, 4]


@in_loop
async def test_a_batch_knows_its_requests_in_order_and_a_bulk_request_once() -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching())
    a, b, c = (RequestContext(name, "") for name in "abc")
    futures = put(batcher, 1, who=a)
    await run.began(1)
    futures += put(batcher, 2, who=b)
    many = asyncio.create_task(bulk(batcher, [3, 4, 5], c))
    await turns()
    futures += put(batcher, 6, who=a)
    run.let_go()
    await asyncio.gather(many, *futures)
    assert run.contexts == [(a,), (b, c, a)]


@in_loop
async def test_a_request_whose_client_has_gone_is_not_run() -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching())
    running, *_ = put(batcher, 1)
    await run.began(1)
    waiting, gone = put(batcher, 2, 3)
    gone.cancel()
    running.cancel()
    run.let_go()
    assert await answers([waiting]) == [4]
    assert run.batches == [[1], [2]]
    await batcher.drain()


@in_loop
async def test_draining_waits_for_what_runs_and_what_is_queued() -> None:
    run = Doubling()
    batcher = Batcher(run, INT, Batching(max_batch_size=1))
    await batcher.drain()
    futures = put(batcher, 1, 2)
    assert not batcher.is_idle
    await run.began(1)
    drained = asyncio.create_task(batcher.drain())
    run.gates[0].set()
    await run.began(2)
    assert not drained.done()
    assert not batcher.is_idle
    run.gates[1].set()
    await drained
    assert batcher.is_idle
    assert all(future.done() for future in futures)


@in_loop
async def test_each_batch_is_reported_with_its_rows_seconds_and_waits(clock: Clock) -> None:
    run, seen = Doubling(), list[tuple[int, float, Sequence[float]]]()
    batcher = Batcher(run, INT, Batching(), observe=lambda *batch: seen.append(batch))
    futures = put(batcher, 1, 2, 3)
    await run.began(1)
    clock.now += 0.5
    run.let_go()
    await answers(futures)
    await batcher.drain()
    assert seen == [(3, 0.5, [0.0, 0.0, 0.0])]


@in_loop
async def test_a_busy_batcher_has_one_timer_for_deadlines(clock: Clock) -> None:
    loop, timers = asyncio.get_running_loop(), 0
    call_later = loop.call_later

    def counted(delay: float, call: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        def fire() -> None:
            nonlocal timers
            timers -= 1
            call(*args)

        nonlocal timers
        timers += 1
        return call_later(delay, fire)

    loop.call_later = counted  # type: ignore[assignment, method-assign]
    run = Doubling()
    batcher = Batcher(run, INT, Batching())
    futures = []
    for row in range(20):
        futures += put(batcher, row)
        await turns()
        clock.now += 0.06  # the loop comes to its timers a little late
    run.let_go()
    await answers(futures)
    assert timers <= 1


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 6), st.sampled_from([None, 20.0]))
@settings(deadline=None, derandomize=True, max_examples=40)
def test_no_answer_is_lost_doubled_or_given_to_another(
    seed: int, in_flight: int, size: int, max_batch_cost: float | None
) -> None:
    dice = random.Random(seed)
    succeeded: collections.Counter[int] = collections.Counter()
    at_once = 0

    async def run(columns: Columns, contexts: tuple[RequestContext, ...], *, alone: bool) -> Any:
        nonlocal at_once
        x = columns["x"]
        assert len(x) <= size
        assert at_once < in_flight
        at_once += 1
        await turns(dice.randrange(5))
        at_once -= 1
        if (x % 7 == 0).any():
            raise DataError("sevens")
        succeeded.update(x.tolist())
        return {"y": 2 * x}

    async def client(batcher: Batcher, rows: list[int]) -> None:
        await turns(dice.randrange(30))
        if len(rows) == 1 and dice.random() < 0.5:
            asked: Any = put(batcher, rows[0])[0]
        else:
            asked = asyncio.ensure_future(bulk(batcher, rows))
        if any(row % 7 == 0 for row in rows):
            with pytest.raises(DataError):
                await asked
        else:
            assert (await asked)["y"].tolist() == [2 * row for row in rows]

    async def main() -> None:
        batching = Batching(size, 10_000, lambda row: row["x"] % 10, max_batch_cost or math.inf)
        batcher = Batcher(run, INT, batching, in_flight=in_flight)
        rows, requests = list(range(120)), []
        while rows:
            count = dice.choice([1, 1, 1, 2, 9])
            requests.append(rows[:count])
            rows = rows[count:]
        await asyncio.gather(*(client(batcher, rows) for rows in requests))
        await batcher.drain()
        assert batcher.rows_queued == 0

    asyncio.run(asyncio.wait_for(main(), SAFETY_S))
    assert all(times == 1 for times in succeeded.values())


@in_loop
async def test_in_a_crowd_rows_that_come_a_moment_apart_share_a_batch() -> None:
    for crowded, batches in ((False, [[1], [2]]), (True, [[1, 2]])):
        run = Doubling(held=False)
        batcher = Batcher(run, INT, Batching())
        batcher.is_crowded = crowded
        futures = put(batcher, 1)
        await turns()
        futures += put(batcher, 2)
        await asyncio.gather(*futures)
        assert run.batches == batches
