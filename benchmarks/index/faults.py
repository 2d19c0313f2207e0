"""An index's processes are killed while clients change and ask it: nothing may be lost."""

import os
import random
import signal
import statistics
import tempfile
import threading
import time
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks._figures import Report
from raysys.errors import StorageError
from raysys.index import VectorIndex, vector_table
from raysys.storage import Storage

_CLIENTS, _IDS, _DIM, _SHARDS = 3, 500, 16, 2
_BATCH, _PAUSE_S = 20, 0.01
_BEFORE_S = (0.2, 1.2)
_COME_BACK_S = 60.0
_VECTORS = np.random.default_rng(0).normal(size=(_CLIENTS * _IDS, _DIM)).astype(np.float32)


def run(report: Report, kills: int) -> None:
    """Kill processes one after the other, half of them of an index with a second replica.

    Args:
        report: Takes the figures.
        kills: How many; each takes about six seconds.
    """
    parts = [_Round(1, kills - kills // 2), _Round(2, kills // 2)]
    for part in parts:
        part.run()
    clients = [client for part in parts for client in part.clients]
    seconds = [one for part in parts for one in part.seconds]
    second = parts[1].clients

    def total(what: str, whose: list["_Client"]) -> int:
        return sum(getattr(client, what) for client in whose)

    twice = total("twice", clients) + sum(part.twice for part in parts)
    report.add("kill -9 of index processes under load", len(seconds), "kills")
    report.add("  changes acknowledged meanwhile", total("changes", clients), "batches")
    report.add("  changes that were cut off", total("cut_off", clients), "batches")
    report.add("  acknowledged rows lost or wrong", total("lost", clients), "rows", below=1)
    report.add("  rows not seen once acknowledged", total("late", clients), "rows", below=1)
    report.add("  ids that stand twice", twice, "ids", below=1)
    report.add("  questions with a second replica", total("queries", second), "calls")
    report.add("    that failed", total("failed", second), "calls", below=1)
    if seconds:
        report.add("  until all processes answer again, median", statistics.median(seconds), "s")
        report.add("    at most", max(seconds), "s")


class _Round:
    """An index of two shards, its clients, and kills while they work."""

    def __init__(self, replicas: int, kills: int) -> None:
        self._replicas, self._kills = replicas, kills
        self.seconds: list[float] = []
        self.twice = 0
        self.clients: list[_Client] = []

    def run(self) -> None:
        """Build the index, kill, check after each kill, and close it."""
        draw = random.Random(self._replicas)
        with tempfile.TemporaryDirectory() as folder:
            index = VectorIndex.build(
                "faults", _rows(np.arange(_CLIENTS * _IDS), 0), Storage(folder), shards=_SHARDS,
                replicas=self._replicas,
            )  # fmt: skip
            self.clients = [_Client(index, number) for number in range(_CLIENTS)]
            try:
                for client in self.clients:
                    client.thread.start()
                for number in range(self._kills):
                    time.sleep(draw.uniform(*_BEFORE_S))
                    self._kill(index, draw)
                    self._check(index)
                    print(f"kill {number + 1} of {self._kills}, {self._replicas} replicas: back "
                          f"after {self.seconds[-1]:.1f} s", flush=True)  # fmt: skip
            finally:
                for client in self.clients:
                    client.ended.set()
                for client in self.clients:
                    client.thread.join()
                if self.clients:
                    self._check(index)
                index.close()

    def _kill(self, index: VectorIndex, draw: random.Random) -> None:
        replicas = [one for some in index._router._replicas.values() for one in some]
        victim = draw.choice([index._writer, *replicas])
        pid = _pid(victim)
        started = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        while _pid(victim) == pid or any(counts is None for counts in index.status().values()):
            if time.monotonic() - started > _COME_BACK_S:
                raise RuntimeError(f"process {pid} did not come back in {_COME_BACK_S:g} s")
            time.sleep(0.02)
        self.seconds.append(time.monotonic() - started)

    def _check(self, index: VectorIndex) -> None:
        """Compare the whole index with what was acknowledged, while the clients hold still."""
        for client in self.clients:
            client.turn.acquire()
        try:
            everything = index.query(_VECTORS[:1], _CLIENTS * _IDS + 100).ids[0]
            there = everything[everything >= 0]
            self.twice += len(there) - len(np.unique(there))
            for client in self.clients:
                found = client.found(client.ids)
                client.lost += client.differing(found)
                # What was cut off has ended one way or the other.
                client.model = {number: {found.get(number)} for number in client.ids.tolist()}
            living = sum(None not in one for each in self.clients for one in each.model.values())
            self.twice += abs(len(there) - living)
        finally:
            for client in self.clients:
                client.turn.release()


class _Client:
    """Changes ids that nobody else changes, and knows what each of them may be.

    Attributes:
        model: By id the values that it may have, None for a row that is not there; more than
            one if a change was cut off.
        turn: Held during each operation.
    """

    def __init__(self, index: VectorIndex, number: int) -> None:
        self._index, self._draw = index, random.Random(number)
        self.ids = np.arange(number * _IDS, (number + 1) * _IDS)
        self.model: dict[int, set[int | None]] = {one: {0} for one in self.ids.tolist()}
        self.turn, self.ended = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._work)
        self.changes = self.cut_off = self.lost = self.late = self.twice = 0
        self.queries = self.failed = 0

    def found(self, ids: np.ndarray) -> dict[int, int]:
        """What the index says of some ids."""
        table = self._index.get(ids)
        found = dict(zip(table["id"].to_pylist(), table["value"].to_pylist(), strict=True))
        self.twice += table.num_rows - len(found)
        return found

    def differing(self, found: dict[int, int], ids: Any = None) -> int:
        """How many rows are not what they may be."""
        asked = self.ids if ids is None else ids
        return sum(found.get(number) not in self.model[number] for number in asked.tolist())

    def _work(self) -> None:
        value = 0
        while not self.ended.wait(_PAUSE_S):
            value += 1
            with self.turn:
                if self._draw.random() < 0.5:
                    self._query()
                else:
                    self._change(value)

    def _query(self) -> None:
        self.queries += 1
        row = self._draw.randrange(len(_VECTORS))
        try:
            ids = self._index.query(_VECTORS[row : row + 1], 10).ids[0]
            self.twice += len(ids) - len(np.unique(ids))
        except Exception as error:
            print(f"a query failed: {error!r}", flush=True)
            self.failed += 1

    def _change(self, value: int) -> None:
        chosen = np.array(self._draw.sample(self.ids.tolist(), _BATCH))
        is_upsert = self._draw.random() < 0.7
        made = value if is_upsert else None
        before = {number: set(self.model[number]) for number in chosen.tolist()}
        for number in before:
            self.model[number].add(made)
        try:
            if is_upsert:
                self._index.upsert(_rows(chosen, value))
            else:
                self._index.delete(chosen)
        except StorageError:  # nothing has changed
            self.model |= before
        except Exception as error:
            print(f"a change was cut off: {error!r}", flush=True)
            self.cut_off += 1
        else:
            self.changes += 1
            self.model |= {number: {made} for number in before}
            self._look(chosen)

    def _look(self, chosen: np.ndarray) -> None:
        self.queries += 1
        try:
            self.late += self.differing(self.found(chosen), chosen)
        except Exception as error:
            print(f"rows could not be got: {error!r}", flush=True)
            self.failed += 1


def _rows(ids: np.ndarray, value: int) -> pa.Table:
    return vector_table(ids, _VECTORS[ids], {"value": np.full(len(ids), value)})


def _pid(actor: Any) -> int:
    import ray

    told = actor.__ray_call__.options(max_task_retries=-1)
    return int(ray.get(told.remote(lambda _: os.getpid()), timeout=_COME_BACK_S))
