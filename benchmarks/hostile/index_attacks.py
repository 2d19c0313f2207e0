"""Attacks on an index behind HTTP: filters that are slow to read or run, and large writes."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from benchmarks.hostile.attacks import ARROW, JSON, ask
from raysys.index import VectorIndex, vector_table
from raysys.storage import Storage

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from benchmarks.hostile.attacks import Attack
    from raysys.serve import Endpoint

_DIM, _ROWS = 16, 20_000
_WRITTEN_ROWS = 50_000
_PAUSE_S = 0.5
_MIB = 1 << 20


@contextlib.contextmanager
def build_index() -> Iterator[VectorIndex]:
    """The index that is attacked: 20,000 vectors of 16 dimensions with a year and a title."""
    rng = np.random.default_rng(0)
    attributes = {
        "year": 1900 + np.arange(_ROWS) % 120,
        "title": [f"film {number}" for number in range(_ROWS)],
    }
    table = vector_table(np.arange(_ROWS), rng.normal(size=(_ROWS, _DIM)), attributes)
    with tempfile.TemporaryDirectory() as folder:
        index = VectorIndex.build("shelf", table, Storage(folder), shards=1)
        try:
            yield index
        finally:
            index.close()


def filters(make: Callable[[int], str]) -> Attack:
    """Searches with filters that `make` writes, each with a number of its own."""

    def attack(endpoint: Endpoint, stop: threading.Event) -> None:
        for turn in itertools.count():
            request = {"vector": [1.0] * _DIM, "filter": make(turn)}
            ask(endpoint, json.dumps(request).encode(), JSON, f"{endpoint.route}/search")
            if stop.wait(_PAUSE_S):
                return

    return attack


def bulk_write(endpoint: Endpoint, stop: threading.Event) -> None:
    """Upserts of 50,000 rows in one request."""
    rng = np.random.default_rng(2)
    ids = np.arange(_ROWS, _ROWS + _WRITTEN_ROWS)
    attributes = {"year": np.full(len(ids), 1900), "title": ["bulk"] * len(ids)}
    table = vector_table(ids, rng.normal(size=(len(ids), _DIM)), attributes)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    while not stop.is_set():
        ask(endpoint, sink.getvalue(), ARROW, f"{endpoint.route}/upsert")
        stop.wait(_PAUSE_S)


def _nested(depth: int, text: str) -> str:
    return "(" * depth + text + ")" * depth


INDEX_ATTACKS: dict[str, Attack] = {
    "filters of 1 MiB": filters(lambda turn: f"year > {turn} or " * (_MIB // 20) + "year > 1"),
    "filters of 45,000 substrings": filters(
        lambda turn: " or ".join(f"'{turn % 10}{number:x}' in title" for number in range(45_000))
    ),
    "filters at their limits": filters(
        lambda turn: " or ".join(f"'{turn}-{number:x}' in title" for number in range(128))
    ),
    "long chains of comparisons": filters(lambda turn: f"{turn} < year" + " < year" * 20_000),
    "formatted strings of 300 kB": filters(
        lambda turn: 'title == f"' + "{" * 100_000 + str(turn) + "}" * 100_000 + '"'
    ),
    "brackets 3,000 deep": filters(lambda turn: _nested(3_000, f"year > {turn}")),
    "writes of 50,000 rows": bulk_write,
}
