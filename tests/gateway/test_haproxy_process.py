"""HAProxy while replicas, configurations, keys and its own processes come and go."""

import collections
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from raysys.errors import RaysysError
from raysys.gateway import _haproxy_process as _haproxy
from raysys.gateway._haproxy_config import HAProxySettings
from raysys.gateway._haproxy_process import HAProxy
from tests.gateway.fronts import (
    SAFETY_S,
    TOKEN,
    Maker,
    Starter,
    app,
    eventually,
    free_port,
    key,
)

# --- replicas that die ---


@pytest.mark.parametrize(
    "apart",
    [False, True],
    ids=["one packet", "two packets"],
)
def test_a_request_whose_replica_dies_under_it_is_answered_by_another(
    start: Starter, replica: Maker, apart: bool
) -> None:
    sick, well = replica("sick"), replica("well")
    sick.mortal = True
    front = start([app("a")], {"a": {0: sick.address, 1: well.address}}, [])
    bodies = [f'{{"x": {number}}}' for number in range(60)]
    replies = [front.ask("/a", body.encode(), apart=apart) for body in bodies]
    assert {reply.server for reply in replies} == {"well"}
    assert [reply.json["body"] for reply in replies] == bodies
    assert sick.asked


def test_a_body_too_large_to_be_sent_again_is_502_as_json(start: Starter, replica: Maker) -> None:
    sick = replica("sick")
    sick.mortal = True
    front = start([app("a", body=1 << 20)], {"a": {0: sick.address}}, [])
    reply = front.ask("/a", b"x" * (1 << 19))
    assert reply.status == 502
    assert reply.json == {
        "error": "the replica did not respond", "request_id": reply.headers["x-request-id"],
    }  # fmt: skip
    assert len(sick.asked) == 1


def test_requests_wait_in_the_room_while_there_is_no_replica(
    start: Starter, replica: Maker
) -> None:
    front = start([app("a")], {}, [])
    reply = front.ask("/a", b"body")
    assert (reply.status, reply.server) == (200, "holding")
    assert reply.json["body"] == "body"
    assert reply.json["headers"]["x-raysys-app"] == "a"
    assert reply.json["headers"]["x-raysys-token"] == TOKEN


def test_a_killed_replica_costs_no_request_and_gets_them_again_when_it_is_back(
    start: Starter, replica: Maker
) -> None:
    first = replica("first")
    front = start([app("a")], {"a": {5: first.address}}, [])
    assert front.ask("/a").server == "first"
    first.kill()
    assert [front.ask("/a").server for _ in range(5)] == ["holding"] * 5
    replica("again", first.server_port)
    eventually(lambda: front.ask("/a").server == "again")


def test_a_request_under_way_in_a_killed_replica_goes_to_another(
    start: Starter, replica: Maker
) -> None:
    one, other = replica("one"), replica("other")
    front = start([app("a")], {"a": {0: one.address}}, [])
    one.gate.clear()
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(front.ask, "/a", b"precious")
        assert one.arrived.acquire(timeout=SAFETY_S)
        front.proxy.set_server("a", 1, other.address)
        one.mortal = True
        one.kill()
        reply = asked.result(SAFETY_S)
    assert (reply.status, reply.server, reply.json["body"]) == (200, "other", "precious")


def test_a_stranger_at_a_replicas_address_gets_no_requests(start: Starter, replica: Maker) -> None:
    stranger = replica("stranger")
    stranger.alive = False
    front = start([app("a")], {"a": {0: stranger.address}}, [])
    eventually(lambda: front.ask("/a").server == "holding")


# --- the control socket ---


def test_a_slot_takes_requests_as_soon_as_it_is_set(start: Starter, replica: Maker) -> None:
    one, other = replica("one"), replica("other")
    front = start([app("a")], {}, [])
    front.proxy.set_server("a", 3, one.address)
    assert front.ask("/a").server == "one"
    front.proxy.set_server("a", 63, other.address)
    assert {front.ask("/a").server for _ in range(10)} == {"one", "other"}


def test_a_drained_slot_ends_what_it_has_and_gets_no_more(start: Starter, replica: Maker) -> None:
    one, other = replica("one"), replica("other")
    front = start([app("a")], {"a": {0: one.address}}, [])
    one.gate.clear()
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(front.ask, "/a")
        assert one.arrived.acquire(timeout=SAFETY_S)
        assert front.proxy.requests_at("a", [0]) == 1
        assert front.proxy.requests_at("a", [1, 2]) == 0
        front.proxy.set_server("a", 1, other.address)
        front.proxy.drain_server("a", 0)
        assert {front.ask("/a").server for _ in range(5)} == {"other"}
        assert front.proxy.requests_at("a", [0, 1]) == 1
        one.gate.set()
        assert asked.result(SAFETY_S).server == "one"
    eventually(lambda: front.proxy.requests_at("a", [0]) == 0)


def test_what_no_replica_can_take_is_refused_at_once_and_others_are_not(
    start: Starter, replica: Maker
) -> None:
    one, other = replica("one"), replica("other")
    front = start([app("a"), app("b")], {"a": {0: one.address}, "b": {0: other.address}}, [])
    front.proxy.limit_server("a", 0, 2)
    one.gate.clear()
    with ThreadPoolExecutor() as threads:
        asked = [threads.submit(front.ask, "/a") for _ in range(2)]
        for _ in asked:
            assert one.arrived.acquire(timeout=SAFETY_S)
        refused = front.ask("/a", headers={"x-request-id": "mine"})
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert refused.headers["x-request-id"] == "mine"
        assert "try again later" in refused.json["error"]
        assert front.ask("/v2/models/a/infer").status == 503
        assert front.ask("/b").server == "other"
        front.proxy.set_server("a", 1, other.address)
        assert front.ask("/a").server == "other"
        front.proxy.free_server("a", 1)
        front.proxy.limit_server("a", 0, 3)
        third = threads.submit(front.ask, "/a")
        assert one.arrived.acquire(timeout=SAFETY_S)
        one.gate.set()
        assert {each.result(SAFETY_S).server for each in (*asked, third)} == {"one"}
    assert front.ask("/a").server == "one"


def test_a_freed_slot_stands_for_nobody_until_it_is_set_again(
    start: Starter, replica: Maker
) -> None:
    one, other = replica("one"), replica("other")
    front = start([app("a")], {"a": {0: one.address}}, [])
    front.proxy.free_server("a", 0)
    assert front.ask("/a").server == "holding"
    front.proxy.set_server("a", 0, other.address)
    assert front.ask("/a").server == "other"


def test_slots_of_one_application_are_not_those_of_another(start: Starter, replica: Maker) -> None:
    front = start([app("a"), app("b")], {"a": {0: replica("one").address}}, [])
    front.proxy.set_server("b", 0, replica("two").address)
    front.proxy.free_server("a", 0)
    assert [front.ask(path).server for path in ("/a", "/b")] == ["holding", "two"]


# --- a new configuration ---


def test_applications_come_and_go_and_addresses_stay(start: Starter, replica: Maker) -> None:
    servers = {"a": {0: replica("one").address}, "b": {7: replica("two").address}}
    front = start([app("a")], servers, [])
    assert front.ask("/b").status == 404
    front.proxy.apply([app("b"), app("a", "/elsewhere")], servers, [])
    assert front.ask("/b").server == "two"
    assert front.ask("/elsewhere").server == "one"
    assert front.ask("/a").status == 404
    front.proxy.apply([], {}, [])
    assert front.ask("/b").status == 404


def test_a_client_that_keeps_its_connection_sees_no_error_at_a_reload(
    start: Starter, replica: Maker
) -> None:
    servers = {"a": {0: replica("one").address}}
    front = start([app("a")], servers, [])
    connection = front.connect()
    assert front.ask("/a", connection=connection).status == 200
    front.proxy.apply([app("a"), app("b")], servers, [])
    assert front.ask("/a", connection=connection).status == 200
    assert front.ask("/b", connection=connection).server == "holding"


def test_a_request_under_way_is_answered_through_a_reload(start: Starter, replica: Maker) -> None:
    one = replica("one")
    front = start([app("a")], {"a": {0: one.address}}, [])
    one.gate.clear()
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(front.ask, "/a")
        assert one.arrived.acquire(timeout=SAFETY_S)
        front.proxy.apply([], {}, [])
        assert front.ask("/a").status == 404
        one.gate.set()
        assert asked.result(SAFETY_S).server == "one"


def test_no_request_fails_while_reloads_follow_each_other(start: Starter, replica: Maker) -> None:
    servers = {"a": {0: replica("one").address}}
    front = start([app("a")], servers, [])
    ended, statuses = threading.Event(), collections.Counter[int]()

    def client(keep: bool) -> None:
        connection = front.connect() if keep else None
        while not ended.is_set():
            statuses[front.ask("/a", connection=connection).status] += 1

    with ThreadPoolExecutor() as threads:
        clients = [threads.submit(client, keep) for keep in (True, True, False, False)]
        try:
            for number in range(3):
                front.proxy.apply([app("a"), app(f"new{number}")], servers, [])
        finally:
            ended.set()
        for one in clients:
            one.result(SAFETY_S)
    assert set(statuses) == {200}
    assert front.ask("/new2").server == "holding"


def test_reloads_that_follow_each_other_closely_are_all_taken(
    start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_haproxy, "_START_TIMEOUT_S", 3.0)
    front = start([], {}, [])
    for number in range(40):
        front.proxy.apply([app(f"new{number}")], {}, [])
        assert front.ask(f"/new{number}").server == "holding"


def test_a_configuration_that_haproxy_refuses_leaves_the_old_one_in_place(
    start: Starter, replica: Maker
) -> None:
    servers = {"a": {0: replica("one").address}}
    front = start([app("a")], servers, [])
    with pytest.raises(RaysysError, match="HAProxy rejects its configuration"):
        front.proxy.apply([app("a", "/a\nnonsense")], servers, [])
    assert front.ask("/a").server == "one"


def test_a_refused_configuration_comes_with_haproxys_reason(start: Starter) -> None:
    with pytest.raises(RaysysError, match="nonsense"):
        start([app("a", "/a\nnonsense")], {}, [])


# --- the process ---


def _family(proxy: HAProxy) -> list[psutil.Process]:
    assert proxy.master
    master = psutil.Process(proxy.master)
    return [master, *master.children(recursive=True)]


def test_it_listens_on_its_interface_only_and_its_socket_is_private(start: Starter) -> None:
    front = start([app("a", protected=True)], {}, [key("joe", "rs_joe")])
    ports = itertools.chain.from_iterable(
        process.net_connections("inet") for process in _family(front.proxy)
    )
    listening = {tuple(port.laddr) for port in ports if port.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", front.port)}
    folder = front.proxy._settings.folder
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / "admin.sock").stat().st_mode & 0o077 == 0


def test_a_taken_port_is_refused_by_its_address_and_nothing_stays_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        proxy = HAProxy(HAProxySettings(tmp_path, "127.0.0.1", port, 1, TOKEN))
        with pytest.raises(RaysysError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*Free the"):
            proxy.apply([app("a")], {}, [])
    assert not proxy.is_running


def test_the_port_of_another_gateway_is_refused_too(start: Starter, tmp_path: Path) -> None:
    front = start([], {}, [])
    proxy = HAProxy(HAProxySettings(tmp_path, "127.0.0.1", front.port, 1, TOKEN))
    try:
        with pytest.raises(RaysysError, match="cannot listen"):
            proxy.apply([], {}, [])
    finally:
        proxy.stop()


def test_stopping_ends_all_of_its_processes_and_frees_the_port(start: Starter) -> None:
    front = start([app("a")], {}, [])
    front.proxy.apply([app("b")], {}, [])  # an old worker may still be there
    family = [*_family(front.proxy), *_supervisors(front.proxy)]
    assert len(family) > 3
    assert front.proxy.is_running
    front.proxy.stop()
    assert not front.proxy.is_running
    assert psutil.wait_procs(family, SAFETY_S)[1] == []
    socket.create_server(("127.0.0.1", front.port)).close()
    front.proxy.stop()


def test_it_starts_again_after_it_was_killed(start: Starter, replica: Maker) -> None:
    servers = {"a": {0: replica("one").address}}
    front = start([app("a")], servers, [])
    family = _family(front.proxy)
    for process in family:
        process.kill()
    assert front.ask("/a").server == "one"  # it waited; it was not refused
    psutil.wait_procs(family, SAFETY_S)
    assert not front.proxy.is_as_applied
    front.proxy.apply([app("a")], servers, [])
    assert front.proxy.is_as_applied
    assert front.ask("/a").server == "one"


def test_it_starts_again_with_what_was_last_left_for_it(start: Starter, replica: Maker) -> None:
    front = start([app("a")], {"a": {0: replica("one").address}}, [])
    front.proxy.write([app("a")], {"a": {0: replica("two").address}})
    assert front.ask("/a").server == "one"
    family = _family(front.proxy)
    for process in family:
        process.kill()
    assert front.ask("/a").server == "two"


def test_a_kept_connection_reaches_an_application_that_is_new(
    start: Starter, replica: Maker
) -> None:
    servers = {name: {0: replica(name).address} for name in ("a", "b")}
    front = start([app("a")], servers, [])
    connection = front.connect()
    assert front.ask("/a", connection=connection).server == "a"
    front.proxy.apply([app("a"), app("b")], servers, [])
    assert front.ask("/b", connection=connection).server == "b"


def test_a_new_owner_takes_over_what_runs(start: Starter, replica: Maker) -> None:
    servers = {"a": {0: replica("one").address}}
    front = start([app("a")], servers, [])
    before = front.proxy.master
    owner = HAProxy(front.proxy._settings)
    assert owner.is_supervised
    assert not owner.is_as_applied
    owner.apply([app("a"), app("b")], servers, [])
    assert owner.master == before
    assert front.ask("/b").server == "holding"
    owner.stop()
    assert not front.proxy.is_running


def test_a_master_that_executes_its_program_again_counts_as_running(tmp_path: Path) -> None:
    script = tmp_path / "again.sh"
    script.write_text('[ $1 -gt 0 ] && exec sh "$0" $(($1 - 1))')
    process = subprocess.Popen(["sh", script, "300"])
    (tmp_path / "haproxy.pid").write_text(f"{process.pid} 1")
    proxy = HAProxy(HAProxySettings(tmp_path, "127.0.0.1", free_port(), 1, TOKEN))
    masters = set()
    while process.poll() is None:
        master = proxy.master
        if process.poll() is None:
            masters.add(master)
    assert masters == {process.pid}


def _supervisors(proxy: HAProxy) -> list[psutil.Process]:
    """The supervisor and its standby."""

    def pids() -> list[int]:
        return [proxy._process(name)[0] for name in ("supervisor", "standby")]

    eventually(lambda: len({*pids()} - {0}) == 2)
    return [psutil.Process(pid) for pid in pids()]


def test_no_request_fails_if_the_supervisor_is_killed(start: Starter, replica: Maker) -> None:
    backends, servers = [app("a")], {"a": {0: replica("one").address}}
    front = start(backends, servers, [])
    master, ended, statuses = front.proxy.master, threading.Event(), collections.Counter[int]()

    def client() -> None:
        while not ended.wait(0.005):
            statuses[front.ask("/a").status] += 1

    with ThreadPoolExecutor() as threads:
        clients = [threads.submit(client) for _ in range(2)]
        try:
            for _ in range(2):
                supervisor, standby = _supervisors(front.proxy)
                supervisor.kill()
                for _ in range(10):  # as the gateway does
                    if not front.proxy.is_as_applied:
                        front.proxy.apply(backends, servers, [])
                    time.sleep(0.05)
                assert _supervisors(front.proxy)[0] == standby
        finally:
            ended.set()
        for one in clients:
            one.result(SAFETY_S)
    assert set(statuses) == {200}
    assert statuses[200] > 50
    assert front.proxy.master == master
    for process in _family(front.proxy):  # the new supervisor has the port, too
        process.kill()
    assert front.ask("/a").server == "one"


def test_it_starts_anew_if_its_supervisor_and_the_standby_were_killed(
    start: Starter, replica: Maker
) -> None:
    servers = {"a": {0: replica("one").address}}
    front = start([app("a")], servers, [])
    before, supervisors = _family(front.proxy), _supervisors(front.proxy)
    for process in reversed(supervisors):
        process.kill()
    psutil.wait_procs(supervisors, SAFETY_S)
    assert front.ask("/a").server == "one"  # HAProxy goes on without them
    assert not front.proxy.is_running
    front.proxy.apply([app("a")], servers, [])
    assert front.ask("/a").server == "one"
    assert psutil.wait_procs(before, SAFETY_S)[1] == []


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from raysys.gateway._haproxy_process import HAProxy\n"
        "from raysys.gateway._haproxy_config import HAProxySettings\n"
        f"folder, port = Path({str(tmp_path / 'front')!r}), {free_port()}\n"
        "front = HAProxySettings(folder, '127.0.0.1', port, 1, 't')\n"
        "proxy = HAProxy(front)\n"
        "proxy.apply([], {}, [])\n"
        "print(proxy.master, flush=True)\n"
        "sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert owner.stdout
    master = psutil.Process(int(owner.stdout.readline()))
    family = [master, *master.children(recursive=True)]
    owner.kill()
    owner.communicate(timeout=SAFETY_S)
    alive = psutil.wait_procs(family, SAFETY_S)[1]
    for process in alive:
        process.kill()
    assert alive == []
