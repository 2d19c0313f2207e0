"""A shard in one process: rows, the graph over them, and what has not entered it yet."""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from raysys.errors import UnavailableError
from raysys.index._filter import Filter
from raysys.index._hnsw_graph import HnswGraph
from raysys.index._query_plan import Planner
from raysys.index._slot_rows import NEVER, Rows
from raysys.index._types import merge, padding, unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pyarrow as pa

    from raysys.index._change_record import Batch
    from raysys.index._types import Settings

# How long a shard can still answer as of an earlier version: a reader whose shards answered at
# different ones asks for the lower.
HORIZON_S = 10.0
_MERGE_ROWS = 8
_CHUNK_QUERIES = 128
_SKELETON, _ROWS_PER_PIVOT, _MAX_PIVOTS = 0.1, 100, 4096
_MIN_TOMBSTONES = 100
_CENTRE_ROWS, _FAR = 64, 100


class StaleError(Exception):
    """A version was asked for that the shard no longer remembers: ask for the present one."""


class SilentError(UnavailableError):
    """The replica has not heard the writer of late: another may hold changes that it does not."""


@dataclasses.dataclass(frozen=True)
class Capture:
    """A shard as it stood at a version, ready to be written.

    Attributes:
        version: Of what it holds.
        ids: int64 `(slots,)`.
        vectors: float32 `(slots, dim)`.
        table: `id` and the attributes.
        deleted: Slots whose rows have ended.
        merged: Slots below are in the graph, unless they ended before they got there.
        graph: May be marked further while it is written.
        ended_since: Slots whose rows have ended since the capture, asked for afterwards.
    """

    version: int
    ids: np.ndarray
    vectors: np.ndarray
    table: pa.Table
    deleted: np.ndarray
    merged: int
    graph: HnswGraph
    ended_since: Callable[[], np.ndarray]


class Shard:
    """Rows in two places: most in an HNSW graph, the latest beside it, searched exactly.

    A batch of changes takes a moment: new rows are appended, ended ones are marked. A thread
    moves rows into the graph later, a few at a time (`merge`), and builds a graph anew without
    its tombstones (`compact`). One lock is held for each of these steps and for each query, so
    a query sees a batch whole or not at all.

    Attributes:
        version: Of the last batch that was applied.
    """

    def __init__(
        self, settings: Settings, rows: Rows, graph: HnswGraph, merged: int, version: int
    ) -> None:
        """Take over rows and the graph of the first `merged` of them; see `build` and `empty`."""
        self.settings, self.version = settings, version
        self._rows, self._graph, self._merged = rows, graph, merged
        self._lock = threading.Lock()
        # Merging, compaction and capture follow each other; queries and changes do not wait.
        self._maintenance = threading.Lock()
        # Among the rows beside the graph.
        self._dead_aside = int((rows.died[merged : rows.length] != NEVER).sum())
        self._deaths: collections.deque[tuple[float, int, np.ndarray]] = collections.deque()
        self._oldest = version
        self._planner = Planner(settings)
        schema = rows.table.schema
        self._parse = functools.lru_cache(1024)(lambda text: Filter(text, schema))

    @classmethod
    def empty(cls, settings: Settings, schema: pa.Schema, version: int = 0) -> Shard:
        """A shard without rows; `schema` is that of the attributes."""
        rows = Rows(settings.dim, schema)
        return cls(settings, rows, HnswGraph(settings, 0), 0, version)

    @classmethod
    def build(
        cls, settings: Settings, ids: np.ndarray, vectors: np.ndarray, attributes: pa.Table,
        version: int, progress: Callable[[int], None] | None = None,
    ) -> Shard:  # fmt: skip
        """A shard whose graph holds all rows.

        Rows are inserted neighbour after neighbour, which finds the graph's nodes in the
        processor's cache and takes a quarter less time; a random tenth comes first, so that the
        graph has its far links (compare Coleman et al., 2022, on the order of nodes).

        Args:
            settings: Of the index.
            ids: int64 `(n,)`, checked.
            vectors: float32 `(n, dim)`, checked.
            attributes: Of the index's schema.
            version: Of the rows.
            progress: Told how many rows are in the graph.
        """
        order = _nearby_order(vectors, settings)
        rows = Rows(settings.dim, attributes.schema, int(len(ids) * 1.1))
        rows.append(ids[order], vectors[order], attributes.take(order), version, NEVER)
        rows.index_ids()
        graph = HnswGraph(settings, len(ids))
        for start in range(0, len(ids), 2000):
            end = min(start + 2000, len(ids))
            graph.add(np.arange(start, end), rows.vectors[start:end])
            if progress:
                progress(end)
        return cls(settings, rows, graph, len(ids), version)

    # --- told ---

    @property
    def size(self) -> int:
        """Living rows."""
        return len(self._rows.slot_of)

    @property
    def pending(self) -> int:
        """Rows beside the graph."""
        return self._rows.length - self._merged

    @property
    def tombstones(self) -> int:
        """Deleted rows in the graph."""
        return self._graph.tombstones

    # --- changed ---

    def apply(self, version: int, batch: Batch) -> None:
        """Apply a batch as a whole; it makes `version`."""
        with self._lock:
            now, slots = time.monotonic(), self._rows.change(batch, version)
            in_graph = slots[slots < self._merged]
            self._graph.delete(in_graph)
            self._dead_aside += len(slots) - len(in_graph)
            self._deaths.append((now, version, slots))
            while self._deaths and self._deaths[0][0] < now - HORIZON_S:
                self._oldest = self._deaths.popleft()[1]
            self.version = version

    def merge(self, rows: int = _MERGE_ROWS) -> int:
        """Move some rows into the graph; tell how many."""
        with self._maintenance, self._lock:
            slots = np.arange(self._merged, min(self._rows.length, self._merged + rows))
            if not len(slots):
                return 0
            dead = self._rows.died[slots] != NEVER
            if not dead.all():
                self._graph.add(slots[~dead], self._rows.vectors[slots[~dead]])
            self._dead_aside -= int(dead.sum())
            self._merged += len(slots)
            return len(slots)

    @property
    def wants_compaction(self) -> bool:
        """Whether more of the rows have ended, in the graph or not, than the settings allow."""
        with self._lock:
            rows = self._rows
            ended = rows.length - len(rows.slot_of)
            return ended > max(self.settings.max_tombstones * rows.length, _MIN_TOMBSTONES)

    def compact(self, pause: Callable[[], None] | None = None) -> None:
        """Build rows and graph anew without what has ended, aside, and swap them in.

        The shard stands in memory twice meanwhile.

        Args:
            pause: Called after every few rows, to leave the processor to others.
        """
        with self._maintenance:
            with self._lock:
                old, start = self._rows, self._rows.length
                kept, version, table = old.alive(), self.version, old.table
            rows = old.take(kept, table)
            graph = HnswGraph(self.settings, len(kept))
            for first in range(0, len(kept), 64):
                last = min(first + 64, len(kept))
                graph.add(np.arange(first, last), rows.vectors[first:last])
                if pause:
                    pause()
            # Most of the ids are prepared before the lock is taken.
            slot_of = dict(zip(rows.ids[: len(kept)].tolist(), range(len(kept)), strict=True))
            with self._lock:
                rows.died[: len(kept)] = old.died[kept]
                ended = np.flatnonzero(rows.died[: len(kept)] != NEVER)
                graph.delete(ended)
                for number in rows.ids[ended].tolist():
                    del slot_of[number]
                late = slice(start, old.length)
                rows.append(
                    old.ids[late], old.vectors[late], old.attributes(start), old.born[late],
                    old.died[late],
                )  # fmt: skip
                living = np.flatnonzero(rows.died[len(kept) : rows.length] == NEVER) + len(kept)
                slot_of.update(zip(rows.ids[living].tolist(), living.tolist(), strict=True))
                rows.slot_of = slot_of
                self._rows, self._graph, self._merged = rows, graph, len(kept)
                self._dead_aside = rows.length - len(kept) - len(living)
                # Rows that ended before are gone; those that ended since have new slots.
                since = np.flatnonzero(rows.died[: rows.length] != NEVER)
                self._deaths.clear()
                self._deaths.append((time.monotonic(), self.version, since))
                self._oldest = version
                self._planner = Planner(self.settings)

    def capture(self, write: Callable[[Capture], None]) -> None:
        """Let `write` store the present state, while queries and changes go on."""
        with self._maintenance:
            with self._lock:
                rows, length = self._rows, self._rows.length
                dead = rows.died[:length] != NEVER

                def ended_since() -> np.ndarray:
                    with self._lock:
                        return np.flatnonzero((rows.died[:length] != NEVER) & ~dead)

                state = Capture(
                    self.version, rows.ids[:length], rows.vectors[:length], rows.table,
                    np.flatnonzero(dead), self._merged, self._graph, ended_since,
                )  # fmt: skip
            write(state)

    # --- asked ---

    def search(
        self, vectors: np.ndarray, k: int, ef: int | None = None,
        filters: Sequence[str | None] | None = None, as_of: int | None = None,
    ) -> tuple[int, np.ndarray, np.ndarray]:  # fmt: skip
        """The k nearest rows of each vector.

        Args:
            vectors: float32 `(n, dim)`, checked; of any length under "cosine".
            k: Wanted.
            ef: Candidates looked at; the settings' by default.
            filters: A predicate for each vector, or None for none at all.
            as_of: Version to answer for; the present by default.

        Returns:
            The version, and ids int64 and distances float32 `(n, k)`, padded.

        Raises:
            StaleError: Nothing is known any more of that version.
        """
        if self.settings.metric == "cosine":
            vectors = unit(vectors)[0]
        ef = ef or self.settings.ef
        if len(vectors) <= _CHUNK_QUERIES and filters is None:
            with self._lock:
                version = self._readable(as_of)
                return version, *self._nearest(vectors, k, ef, version)
        parts = []
        with self._lock:
            version = self._readable(as_of)
        for some, text in _groups(len(vectors), filters):
            chosen = None if text is None else self._parse(text)
            with self._lock:
                # A long batch lets others in between, and stays at its first version.
                self._readable(version)
                if chosen is None:
                    found = self._nearest(vectors[some], k, ef, version)
                else:
                    found = self._matching(vectors[some], k, ef, chosen, version)
                parts.append((some, *found))
        ids = np.empty((len(vectors), k), np.int64)
        distances = np.empty((len(vectors), k), np.float32)
        for some, part_ids, part_distances in parts:
            ids[some], distances[some] = part_ids, part_distances
        return version, ids, distances

    def matching(self, text: str | None, limit: int) -> np.ndarray:
        """Up to `limit` ids of rows that satisfy a predicate, in no order."""
        chosen = self._parse(text or "True")
        with self._lock:
            slots = self._matching_slots(chosen, self.version)
            return self._rows.ids[slots[:limit]]

    def get(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, pa.Table]:
        """The living rows among these ids: ids, vectors, attributes."""
        with self._lock:
            rows = self._rows
            found = [rows.slot_of.get(number) for number in ids.tolist()]
            slots = np.array([slot for slot in found if slot is not None], np.int64)
            return rows.ids[slots], rows.vectors[slots], rows.attributes().take(slots)

    def sample(self, rows: int, seed: int) -> np.ndarray:
        """Vectors of up to so many rows, float32 `(n, dim)`."""
        with self._lock:
            alive = self._rows.alive()
            rng = np.random.default_rng(seed)
            return self._rows.vectors[rng.choice(alive, min(rows, len(alive)), replace=False)]

    def exact(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The true k nearest, by comparing with every row."""
        if self.settings.metric == "cosine":
            vectors = unit(vectors)[0]
        with self._lock:
            return self._exact(vectors, k, self._rows.alive())

    def _readable(self, as_of: int | None) -> int:
        if as_of is None:
            return self.version
        if as_of < self._oldest:
            raise StaleError(f"version {as_of} is asked for, the oldest known is {self._oldest}")
        return min(as_of, self.version)

    def _nearest(
        self, vectors: np.ndarray, k: int, ef: int, version: int
    ) -> tuple[np.ndarray, np.ndarray]:
        rows, count = self._rows, min(k, self._graph.size)
        parts = []
        if count:
            found = self._graph.search(vectors, count, ef)
            if found is None or self._is_later(found[0], version):
                slots = np.arange(rows.length)
                return self._exact(vectors, k, slots[rows.visible(slots, version)])
            parts.append(self._named(*found, k))
        if version < self.version or rows.length > self._merged + self._dead_aside:
            aside = self._aside(version)
            if len(aside):
                parts.append(self._exact(vectors, k, aside))
        return merge(parts, k) if parts else padding(len(vectors), k)

    def _is_later(self, slots: np.ndarray, version: int) -> bool:
        """Whether the graph, which knows the present alone, found rows younger than a version."""
        return version < self.version and bool((self._rows.born[slots] > version).any())

    def _aside(self, version: int) -> np.ndarray:
        """Slots that the graph does not answer for at a version, ascending."""
        slots = np.arange(self._merged, self._rows.length)
        if version < self.version:
            ended = [some for _, when, some in self._deaths if when > version]
            slots = np.unique(np.concatenate([*ended, slots]))
        return slots[self._rows.visible(slots, version)]

    def _matching(
        self, vectors: np.ndarray, k: int, ef: int, chosen: Filter, version: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search the graph for more than k and leave out what does not match, or search exactly."""
        rows = self._rows
        ids, distances = padding(len(vectors), k)
        left = np.arange(len(vectors))  # whose answer is not known
        plan = self._planner.plan(rows, chosen, k)
        wanted = plan.candidates(len(left), ef)
        while len(left) and wanted and wanted <= self._graph.size:
            found = self._graph.search(vectors[left], wanted, max(ef, wanted))
            if found is None or self._is_later(found[0], version):
                break
            slots, far = found
            good = rows.mask(chosen, slots.reshape(-1)).reshape(slots.shape)
            reached = good.sum(axis=1) >= k
            enough = np.flatnonzero(reached)
            # The order is kept: those that match come first.
            first = np.argsort(~good[enough], axis=1, kind="stable")[:, :k]
            ids[left[enough]] = rows.ids[slots[enough[:, None], first]]
            distances[left[enough]] = far[enough[:, None], first]
            left = left[~reached]
            wanted = plan.more(len(left), wanted)
        aside = self._aside(version) if len(left) < len(vectors) else np.empty(0, np.int64)
        if len(aside):
            aside = aside[rows.mask(chosen, aside)]
            beside = self._exact(vectors, k, aside)
            ids, distances = merge([(ids, distances), beside], k)
        if len(left):
            slots = self._matching_slots(chosen, version)
            ids[left], distances[left] = self._exact(vectors[left], k, slots)
        return ids, distances

    def _matching_slots(self, chosen: Filter, version: int) -> np.ndarray:
        slots = self._planner.matching(self._rows, chosen)
        return slots[self._rows.visible(slots, version)]

    def _named(
        self, slots: np.ndarray, distances: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids for slots, padded to k columns."""
        ids = self._rows.ids[slots]
        if ids.shape[1] == k:
            return ids, distances
        padded = padding(len(ids), k)
        padded[0][:, : ids.shape[1]], padded[1][:, : ids.shape[1]] = ids, distances
        return padded

    def _exact(
        self, vectors: np.ndarray, k: int, slots: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest among some rows, by comparing with each, padded."""
        if not len(slots):
            return padding(len(vectors), k)
        if slots[-1] - slots[0] == len(slots) - 1:  # side by side: no copy
            rows = self._rows.vectors[slots[0] : slots[-1] + 1]
        else:
            rows = self._rows.vectors[slots]
        if self.settings.metric == "l2":
            vectors, rows = _centred(vectors, rows)
        count = min(k, len(slots))
        found = np.empty((len(vectors), count), np.int64)
        distances = np.empty((len(vectors), count), np.float32)
        step = max(1, (1 << 22) // len(slots))  # 16 MiB of distances at once
        for first in range(0, len(vectors), step):
            some = slice(first, first + step)
            far = self._distances(vectors[some], rows)
            best = np.argpartition(far, count - 1, axis=1)[:, :count]
            near = np.take_along_axis(far, best, axis=1)
            if self.settings.metric == "l2":
                # Cancellation has cost digits; of the few that are left they are had again.
                near = ((rows[best] - vectors[some, None]) ** 2).sum(axis=2)
            order = np.argsort(near, axis=1, kind="stable")
            found[some] = np.take_along_axis(best, order, axis=1)
            distances[some] = np.take_along_axis(near, order, axis=1)
        return self._named(slots[found], distances, k)

    def _distances(self, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        products = vectors @ rows.T
        if self.settings.metric != "l2":
            return np.subtract(1, products, out=products)
        squares = np.einsum("nd,nd->n", rows, rows)
        return squares - 2 * products  # the query's own square changes no order


def _centred(vectors: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both moved to the origin if they lie far from it.

    There the squares are so large that they lose the digits that tell neighbours apart.
    """
    some = rows[:: max(1, len(rows) // _CENTRE_ROWS)]
    centre = some.mean(axis=0)
    spread = np.square(some - centre).sum(axis=1).mean()
    if centre @ centre <= _FAR * spread:
        return vectors, rows
    return vectors - centre, rows - centre


def _groups(
    rows: int, filters: Sequence[str | None] | None
) -> Iterable[tuple[np.ndarray, str | None]]:
    """Rows that can be searched for together, and their filter."""
    by_text: dict[str | None, list[int]] = {}
    for row, text in enumerate(filters or [None] * rows):
        by_text.setdefault(text, []).append(row)
    for text, members in by_text.items():
        for start in range(0, len(members), _CHUNK_QUERIES):
            yield np.array(members[start : start + _CHUNK_QUERIES]), text


def _nearby_order(vectors: np.ndarray, settings: Settings) -> np.ndarray:
    """Rows in an order in which neighbours mostly follow each other."""
    rng = np.random.default_rng(settings.seed)
    count = min(_MAX_PIVOTS, -(-len(vectors) // _ROWS_PER_PIVOT))
    pivots = vectors[rng.choice(len(vectors), count, replace=False)]
    squares = np.einsum("nd,nd->n", pivots, pivots) / 2
    nearest = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), 8192):
        some = slice(start, start + 8192)
        nearest[some] = np.argmax(vectors[some] @ pivots.T - squares, axis=1)
    order = np.argsort(nearest, kind="stable")
    first = rng.random(len(vectors)) < _SKELETON
    return np.concatenate([order[first[order]], order[~first[order]]])
