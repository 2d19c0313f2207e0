"""What one client cannot take from the others: rates of keys, connections, places for requests."""

import collections
import contextlib
import dataclasses
import itertools
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from raysys.errors import RaysysError
from raysys.serve import GatewayOptions
from tests.gateway.fronts import SAFETY_S, Front, Maker, Starter, app, eventually, key

# --- rates of keys ---


def test_a_keys_limit_is_what_it_gets_and_no_reload_gives_more(
    start: Starter, replica: Maker
) -> None:
    backends, servers = [app("a", protected=True)], {"a": {0: replica("a").address}}
    keys = [key("joe", "rs_joe", rate=100)]
    front = start(backends, servers, keys)
    connection = front.connect()

    def ask() -> int:
        return front.ask("/a", headers={"x-api-key": "rs_joe"}, connection=connection).status

    due, statuses = time.monotonic(), collections.Counter[int]()
    for _ in range(505):  # 5 seconds, as long as a HAProxy keeps tables for itself
        time.sleep(max(0.0, due - time.monotonic()))
        statuses[ask()] += 1
        due = max(due + 1 / 101, time.monotonic())  # never a burst
    assert set(statuses) <= {200, 429}
    assert 490 <= statuses[200] <= 505

    time.sleep(2.1)  # two periods of its rate
    began, admitted = time.monotonic(), 0
    for names in itertools.accumulate(["ann", "bob"], lambda before, name: f"{before} {name}"):
        admitted += sum(status == 200 for status in iter(ask, 429))
        front.proxy.apply(backends, servers, [*keys, *(key(name, name) for name in names.split())])
    admitted += sum(status == 200 for status in iter(ask, 429))
    assert 100 <= admitted <= 100 * max(1.0, time.monotonic() - began) + 20


# --- connections ---

# 40 connections, 12 of one source; beyond 20 and 6 a response is the last of its connection.
LIMITS = {"max_connections": 40, "max_source_share": 0.3}


def attacked(start: Starter, replica: Maker) -> Front:
    return start([app("a")], {"a": {0: replica("a").address}}, [], **LIMITS)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_is_above_0_and_at_most_1(share: float) -> None:
    with pytest.raises(RaysysError, match="give a share above 0, at most 1"):
        GatewayOptions(max_source_share=share)


def open_ones(connections: list[socket.socket]) -> int:
    """Number of connections that the server has not closed."""

    def is_open(connection: socket.socket) -> bool:
        connection.settimeout(0)
        try:
            return bool(connection.recv(1))
        except BlockingIOError:
            return True
        except OSError:
            return False

    return sum(map(is_open, connections))


def test_kept_connections_leave_room_for_other_sources_and_their_own(
    start: Starter, replica: Maker
) -> None:
    front = attacked(start, replica)
    kept = [front.connect(f"127.0.0.{2 + number % 4}") for number in range(80)]
    statuses = collections.Counter(front.ask("/a", connection=one).status for one in kept)
    assert statuses == {200: 80}
    sockets = [one.sock for one in kept if one.sock is not None]
    assert open_ones(sockets) <= 20
    for source in ("127.0.0.1", "127.0.0.2"):
        assert front.ask("/a", connection=front.connect(source)).status == 200


def test_silent_connections_of_one_source_are_bounded(start: Starter, replica: Maker) -> None:
    front = attacked(start, replica)
    address, silent = ("127.0.0.1", front.port), []
    for _ in range(60):
        with contextlib.suppress(ConnectionError):
            silent.append(socket.create_connection(address, source_address=("127.0.0.2", 0)))
    eventually(lambda: open_ones(silent) == 12)
    assert front.ask("/a").status == 200
    for connection in silent:
        connection.close()


def test_connections_that_a_reload_hands_over_are_not_of_one_source(
    start: Starter, replica: Maker
) -> None:
    one = replica("a")
    servers = {"a": {0: one.address}}
    front = start([app("a")], servers, [], **LIMITS)
    kept = [front.connect(f"127.0.0.{2 + number % 3}") for number in range(18)]
    assert {front.ask("/a", connection=each).status for each in kept} == {200}
    front.proxy.apply([app("a"), app("b")], servers, [])
    one.gate.clear()
    with ThreadPoolExecutor(len(kept)) as threads:
        asked = [threads.submit(front.ask, "/a", connection=each) for each in kept]
        eventually(lambda: front.proxy.requests_at("a", [0]) == len(kept))
        one.gate.set()
        assert {each.result(SAFETY_S).status for each in asked} == {200}


# --- unfinished bodies ---


@contextlib.contextmanager
def stalled(front: Front, path: str, size: int, sent: int) -> Iterator[list[socket.socket]]:
    """64 connections that send a part of their bodies and then nothing."""
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(64):
            connection = socket.create_connection(("127.0.0.1", front.port), SAFETY_S)
            connections.append(stack.enter_context(connection))
            connection.sendall(head + b"x" * sent)
        yield connections


def test_unfinished_bodies_take_no_place_of_other_requests(start: Starter, replica: Maker) -> None:
    one = replica("one")
    small = dataclasses.replace(app("a", body=1 << 20), max_requests=20)
    front = start([small], {"a": {0: one.address}}, [], receive_s=60)
    with stalled(front, "/a", 500_000, 60_000):
        eventually(lambda: front.proxy.requests_at("a", [0]) == 64)
        with stalled(front, "/a", 30_000, 20_000):
            connection = front.connect()
            replies = [front.ask("/a", connection=connection) for _ in range(50)]
            assert {(reply.status, reply.server) for reply in replies} == {(200, "one")}
            long = front.ask("/a", b"x" * 100_000, connection=connection)
            assert (long.status, long.server, len(long.json["body"])) == (200, "one", 100_000)
            assert len(one.asked) == 51
    answered = front.proxy.answered()
    assert (answered["a", "2xx"], answered["", "2xx"]) == (51, 0)


def test_a_client_that_falls_silent_in_its_body_is_told_so_and_leaves(
    start: Starter, replica: Maker
) -> None:
    one = replica("one")
    front = start([app("a", body=1 << 20)], {"a": {0: one.address}}, [], receive_s=1)
    for size, sent, status in ((1000, 10, b"408"), (500_000, 60_000, b"400")):
        assert one.asked == []
        with stalled(front, "/a", size, sent) as connections:
            reply = b"".join(iter(lambda: connections[0].recv(65536), b""))
        assert reply.startswith(b"HTTP/1.1 " + status)
        assert b"did not arrive in time" in reply
    eventually(lambda: front.proxy.requests_at("a", [0]) == 0)
    assert front.ask("/a").server == "one"


def test_a_response_takes_longer_than_a_client_may_be_silent(
    start: Starter, replica: Maker
) -> None:
    one = replica("one")
    front = start([app("a")], {"a": {0: one.address}}, [], receive_s=1)
    one.gate.clear()
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(front.ask, "/a")
        time.sleep(1.5)
        one.gate.set()
        assert asked.result(SAFETY_S).server == "one"


def test_slots_are_those_of_long_bodies_too(start: Starter, replica: Maker) -> None:
    one, other = replica("one"), replica("other")
    front = start([app("a", body=1 << 20)], {"a": {0: one.address}}, [])

    def server() -> str | None:
        return front.ask("/a", b"x" * 100_000).server

    assert server() == "one"
    front.proxy.set_server("a", 3, other.address)
    front.proxy.drain_server("a", 0)
    assert server() == "other"
    front.proxy.free_server("a", 3)
    assert server() == "holding"
    front.proxy.set_server("a", 0, other.address)
    assert server() == "other"
    other.kill()
    assert [front.ask("/a").server, server()] == ["holding", "holding"]
