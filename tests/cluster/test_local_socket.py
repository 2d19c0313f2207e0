import asyncio
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from raysys.cluster import AsyncChannel, Channel, _local_socket, listen
from raysys.errors import DataError


def _reversed(request: bytes) -> bytes:
    if request == b"bad":
        raise DataError("no such column")
    return request[::-1]


@pytest.fixture(scope="module")
def address() -> str:
    address = listen(_reversed)
    assert address is not None
    return address


def _ask(channel: Channel, request: bytes) -> bytes:
    channel.send(request)
    return channel.receive(30)


@pytest.mark.parametrize("size", [0, 1, 1000, 5_000_000])
def test_answers_of_any_size_are_complete(address: str, size: int) -> None:
    request = os.urandom(size)
    assert _ask(Channel(address), request) == request[::-1]


def test_an_exception_is_raised_at_the_client_and_the_channel_stays_usable(address: str) -> None:
    channel = Channel(address)
    with pytest.raises(DataError, match="no such column"):
        _ask(channel, b"bad")
    assert _ask(channel, b"ab") == b"ba"


def test_clients_do_not_wait_for_each_other(address: str) -> None:
    channels = [Channel(address) for _ in range(20)]
    with ThreadPoolExecutor(20) as threads:
        answers = threads.map(lambda number: _ask(channels[number], b"%d-" % number), range(20))
    assert list(answers) == [(b"%d-" % number)[::-1] for number in range(20)]


def test_a_channel_reports_whether_the_answer_has_arrived() -> None:
    going_on = threading.Event()
    address = listen(lambda request: request if going_on.wait(30) else b"")
    assert address is not None
    channel = Channel(address)
    channel.send(b"x")
    assert not channel.is_ready(0.01)
    going_on.set()
    assert channel.is_ready(30)
    assert channel.receive(30) == b"x"


def test_the_end_of_the_process_is_noticed_at_once() -> None:
    code = (
        "import sys, time; from raysys.cluster import listen;"
        "print(repr(listen(lambda _: time.sleep(60))), flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = eval(process.stdout.readline())
    channel = Channel(address)
    channel.send(b"x")
    process.kill()
    process.wait()
    assert channel.is_ready(30)
    with pytest.raises(OSError, match=r"ended|reset"):
        channel.receive(30)
    with pytest.raises(ConnectionRefusedError):
        Channel(address)


def test_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "\0raysys-test-of-another-user"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(name)
    listening.listen(1)
    monkeypatch.setattr(_local_socket.os, "getuid", lambda: os.geteuid() + 1)
    with pytest.raises(PermissionError):
        Channel(name)
    listening.close()


def test_an_exception_that_cannot_be_pickled_arrives_as_text() -> None:
    class LocalError(Exception):
        pass

    def answer(request: bytes) -> bytes:
        raise LocalError("why")

    address = listen(answer)
    assert address is not None
    with pytest.raises(RuntimeError, match=r"LocalError.*why"):
        _ask(Channel(address), b"x")


@pytest.mark.parametrize("size", [0, 1, 1000, 5_000_000])
def test_a_channel_of_an_event_loop_gets_complete_answers(address: str, size: int) -> None:
    async def ask() -> None:
        channel = await AsyncChannel.connect(address)
        for _ in range(2):
            request = os.urandom(size)
            assert await channel.ask(request) == request[::-1]
            with pytest.raises(DataError, match="no such column"):
                await channel.ask(b"bad")
        channel.close()
        await asyncio.sleep(0.01)
        with pytest.raises(ConnectionResetError):
            await channel.ask(b"x")

    asyncio.run(ask())
