"""`python -m benchmarks.chaos._load PLAN`: clients that ask at a steady rate and note each outcome.

PLAN is JSON: `addresses` of gateways (a client goes on to the next when it cannot connect, and
asks once more when a connection breaks before the answer begins, as load balancers do),
`requests` (kind, path, body, clients, each_s), `patience_s`, `seconds` and `out`. It ends when the
file `<out>.stop` appears. Each line of `out` is one request: `[kind, number, started, seconds,
asked again, outcome]`; the outcome is a status, or why there is none.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import sys
import threading
import time
from pathlib import Path
from typing import Any

DIM = 8


def body(kind: str, number: int) -> dict[str, Any]:
    """The request of a number; what is upserted names its row by it."""
    vector = [((number * 31 + place * 17) % 97) / 97 + 0.01 for place in range(DIM)]
    if kind == "score":
        return {"features": vector}
    if kind == "search":
        return {"vector": vector, "k": 5}
    return {"id": number, "vector": vector, "value": number}


class _Client(threading.Thread):
    """Asks, waits for the answer, sleeps until the next is due."""

    def __init__(self, plan: dict[str, Any], request: dict[str, Any], number: int) -> None:
        super().__init__(daemon=True)
        self._plan, self._request, self._number = plan, request, number
        self._addresses: list[str] = plan["addresses"]
        self._at = number % len(self._addresses)
        self._connection: http.client.HTTPConnection | None = None
        self.lines: list[tuple[str, int, float, float, int, int | str]] = []
        self._again = 0
        self.ended = threading.Event()

    def run(self) -> None:
        kind, due = self._request["kind"], time.monotonic()
        number = self._request["first"] + self._number * 1_000_000
        while not self.ended.is_set():
            started, clock = time.time(), time.monotonic()
            outcome = self._ask(json.dumps(body(kind, number)).encode())
            seconds = time.monotonic() - clock
            self.lines.append((kind, number, started, seconds, self._again, outcome))
            number += 1
            due = max(due + self._request["each_s"], time.monotonic())
            self.ended.wait(due - time.monotonic())

    def _ask(self, content: bytes) -> int | str:
        """The outcome; `_again` is 1 if a connection broke before the answer began."""
        self._again = 0
        for _ in range(1 + len(self._addresses)):
            if self._connection is not None and _is_closed(self._connection):
                self._connection.close()
                self._connection = None
            try:
                if self._connection is None:
                    address = self._addresses[self._at]
                    host, _, port = address.rpartition(":")
                    made = http.client.HTTPConnection(host, int(port), timeout=2.0)
                    made.connect()
                    assert made.sock
                    made.sock.settimeout(self._plan["patience_s"])
                    self._connection = made
            except OSError as error:
                self._at = (self._at + 1) % len(self._addresses)
                failed = f"no connection: {type(error).__name__}"
                continue
            try:
                return self._send(self._connection, content)
            except TimeoutError:
                failed = "hang"
            except (OSError, http.client.HTTPException) as error:
                failed = f"cut off: {type(error).__name__}"
            self._connection.close()
            self._connection = None
            self._at = (self._at + 1) % len(self._addresses)
            if failed == "hang" or self._again:
                return failed
            self._again = 1
        return failed

    def _send(self, connection: http.client.HTTPConnection, content: bytes) -> int:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", self._request["path"], content, headers)
        reply = connection.getresponse()
        said = reply.read()
        if reply.status != 200:
            print(time.time(), self._request["kind"], reply.status, said[:300], flush=True)
        return reply.status


def _is_closed(connection: http.client.HTTPConnection) -> bool:
    """Whether the server has ended a connection that was idle, as clients with a pool look."""
    return connection.sock is None or bool(select.select([connection.sock], [], [], 0)[0])


def main() -> None:
    """Ask until told to stop."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    out, stop = Path(plan["out"]), Path(plan["out"] + ".stop")
    clients = [
        _Client(plan, request, number)
        for request in plan["requests"]
        for number in range(request["clients"])
    ]
    for client in clients:
        client.start()
    given_up = time.monotonic() + plan["seconds"]
    while not stop.exists() and time.monotonic() < given_up:
        time.sleep(0.1)
    for client in clients:
        client.ended.set()
    for client in clients:
        client.join(plan["patience_s"] + 3)
    with out.open("w") as file:
        for client in clients:
            for line in client.lines:
                file.write(json.dumps(line) + "\n")
    with contextlib.suppress(FileNotFoundError):
        stop.unlink()


if __name__ == "__main__":
    main()
