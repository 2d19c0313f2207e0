"""Queries while rows change: whether answers are right, and how much later they come."""

import itertools
import statistics
import threading
import time

import numpy as np

from benchmarks._figures import Report
from raysys.index import VectorIndex, vector_table

_CLIENTS = 8
_BATCH = 10
_PAUSE_S = 0.05


def run(report: Report, index: VectorIndex, queries: np.ndarray, seconds: float, size: int) -> None:
    """Measure a quiet index and a changing one in turns, three times.

    Args:
        report: Takes the figures.
        index: With ids below `size`.
        queries: float32 `(q, dim)`.
        seconds: Of each measurement.
        size: Ids from here on are new.
    """
    ratios, wrong, found, changes = [], 0, 0, 0
    first = size
    for _ in range(3):
        quiet = _latencies(index, queries, seconds, None)
        writer = _Writer(index, queries, first)
        busy = _latencies(index, queries, seconds, writer)
        first += writer.rows
        wrong, found = wrong + writer.wrong, found + writer.found
        changes += writer.rows
        ratios.append(np.percentile(busy, 99) / np.percentile(quiet, 99))
    report.add("upserts while 8 clients query: rows changed", changes, "rows")
    report.add("  acknowledged rows that were missing or wrong", wrong, "rows", below=1)
    report.add("  new rows that their own vector finds by the graph", found / changes, "share")
    report.add("  query p99 against a quiet index", statistics.median(ratios), "times", below=3)


def _latencies(
    index: VectorIndex, queries: np.ndarray, seconds: float, writer: "_Writer | None"
) -> np.ndarray:
    """Seconds of each query of eight clients; half a second at the start does not count."""
    ends = time.monotonic() + seconds + 0.5
    found: list[list[float]] = [[] for _ in range(_CLIENTS)]

    def client(number: int) -> None:
        for row in itertools.cycle(range(number, len(queries), _CLIENTS)):
            started = time.monotonic()
            if started > ends:
                return
            index.query(queries[row : row + 1], 10)
            if started > ends - seconds:
                found[number].append(time.monotonic() - started)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(_CLIENTS)]
    if writer:
        threads.append(threading.Thread(target=writer.run, args=(ends,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.concatenate([np.array(each) for each in found])


class _Writer:
    """Upserts new rows, replaces and deletes them, and looks for each that was acknowledged."""

    def __init__(self, index: VectorIndex, like: np.ndarray, first: int) -> None:
        self._index, self._like, self._first = index, like, first
        self._random = np.random.default_rng(first)
        self.rows = self.wrong = self.found = 0

    def run(self, ends: float) -> None:
        """Change until then."""
        while time.monotonic() < ends:
            ids = np.arange(self._first + self.rows, self._first + self.rows + _BATCH)
            self._put(ids, self._vectors())
            vectors = self._vectors()
            self._put(ids, vectors)  # in place of those
            ended, kept = ids[::2], ids[1::2]
            # A filter that few rows satisfy is answered exactly, the graph almost.
            some = f"id in {ids.tolist()}"
            exact = self._index.query(vectors, 1, filters=some).ids[:, 0]
            near = self._index.query(vectors, 1).ids[:, 0]
            self.wrong += int((exact != ids).sum())
            self.found += int((near == ids).sum())
            self._index.delete(ended)
            left = np.sort(self._index.query(vectors[:1], _BATCH, filters=some).ids[0])
            near = self._index.query(vectors, 10).ids
            self.wrong += int((left[-len(kept) :] != kept).sum() + np.isin(near, ended).sum())
            self.rows += _BATCH
            time.sleep(_PAUSE_S)

    def _put(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        self._index.upsert(vector_table(ids, vectors, {"price": np.zeros(len(ids), np.int64)}))

    def _vectors(self) -> np.ndarray:
        """Unlike each other and all others, near those that queries are like."""
        made = self._random.choice(self._like, _BATCH, replace=False)
        made = made + 0.03 * self._random.normal(size=made.shape).astype(np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)
