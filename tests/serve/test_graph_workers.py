"""What nodes do to their process, while others ask."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import ray
from ray.util.state import list_actors, list_tasks

from raysys.cluster import WORKER_NAME
from raysys.serve import Endpoint, undeploy
from raysys.serve._graph_workers import _LastWords
from tests.serve.asynchronous import in_loop
from tests.serve.conftest import Deployer
from tests.serve.serving import eventually, hostile_graph, load, post

DEADLINE_S = 6.0


@pytest.fixture(scope="module")
def hostile(deployer: Deployer) -> Iterator[Endpoint]:
    yield deployer("hostile", hostile_graph(), deadline_s=DEADLINE_S)
    undeploy("hostile")


def _ready() -> int:
    """Number of living processes that have loaded their nodes."""
    address = ray.get_runtime_context().gcs_address
    alive = list_actors(
        address, filters=[("state", "=", "ALIVE"), ("class_name", "=", "GraphWorker")]
    )
    loaded = list_tasks(
        address, filters=[("name", "=", "GraphWorker.load"), ("state", "=", "FINISHED")], limit=1000
    )
    ids = {task.actor_id for task in loaded}
    return sum(
        actor.actor_id in ids
        and WORKER_NAME in actor.name
        and "hostile" in actor.name
        and psutil.pid_exists(actor.pid)  # Ray hears of an end later
        for actor in alive
    )


def pid_of(endpoint: Endpoint) -> int:
    return int(post(endpoint.url, {"x": 100}).json["pid"])


@pytest.mark.parametrize("deed", [3, 4, 5])
def test_an_exit_that_is_an_exception_fails_its_request_alone(hostile: Endpoint, deed: int) -> None:
    pid = pid_of(hostile)
    reply = post(hostile.url, {"x": deed})
    assert (reply.status, "the graph failed" in reply.json["error"]) == (500, True)
    assert pid_of(hostile) == pid


@pytest.mark.parametrize(("deed", "status"), [(8, 500), (1, 500), (2, 500), (6, 504), (7, 504)])
def test_what_ends_or_holds_its_process_costs_no_request_of_another_batch(
    hostile: Endpoint, deed: int, status: int
) -> None:
    clients = 2
    eventually(lambda: _ready() >= 2)  # one stands by
    with load(
        hostile.url, lambda number: {"x": 100 + number}, clients=clients, pause_s=0.02
    ) as running:
        running.wait_for(20)
        before = {one["pid"] for one in running.answers()}
        assert post(hostile.url, {"x": deed}).status == status
        running.wait_for(20)
    if status == 504:  # those of its own batch are tried alone, which may be too late
        late = [number for number, reply in running.replies if reply.status == 504]
        assert len(late) <= clients
        running.replies = [one for one in running.replies if one[0] not in late]
    answers = running.answers()
    assert [one["x"] - 100 for one in answers] == [number for number, _ in running.replies]
    assert answers[-1]["pid"] not in before


def test_requests_beside_one_that_ends_the_process_are_answered(hostile: Endpoint) -> None:
    bodies = [{"x": number} for number in (*range(100, 112), 1)]
    with ThreadPoolExecutor(len(bodies)) as threads:
        replies = list(threads.map(lambda body: post(hostile.url, body), bodies))
    assert [reply.status for reply in replies] == [200] * 12 + [500]
    assert [reply.json["x"] for reply in replies[:12]] == [*range(100, 112)]


@pytest.mark.parametrize("is_other", [False, True])
@in_loop
async def test_only_processes_of_the_same_user_say_why_they_end(
    is_other: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = _LastWords()
    await words.listen()
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + is_other)
    reader, writer = await asyncio.open_unix_connection(words.address)
    with contextlib.suppress(ConnectionError):
        writer.write(b"7\nos._exit(1)")
        writer.write_eof()
    if is_other:
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        assert await words.of(7) == ""
    else:
        while await words.of(7) != "os._exit(1)":
            await asyncio.sleep(0.01)
    writer.close()
