"""A shard: its rows, their graph, and the rows that are not in the graph yet."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING

import numpy as np

from raysys.index._exact_search import exact_search
from raysys.index._filter_conditions import FilterConditions
from raysys.index._hnsw_graph import HnswGraph, exact_nearest, insertion_order
from raysys.index._query_result import merge, padding
from raysys.index._rows import NO_ID, normalized
from raysys.index._slot_rows import NEVER, SlotRows, VersionHistory

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import pyarrow as pa

    from raysys.index._change_record import ChangeBatch
    from raysys.index._filter_conditions import Conditions
    from raysys.index._filter_intervals import Intervals
    from raysys.index._settings import IndexSettings

_MERGE_ROWS = 8
_CHUNK_QUERIES = 128
_MIN_TOMBSTONES = 100


@dataclasses.dataclass(frozen=True)
class ShardCapture:
    """State of a shard at a version, ready to be written."""

    version: int
    ids: np.ndarray  # int64 `(slots,)`
    vectors: np.ndarray  # float32 `(slots, dim)`
    table: pa.Table  # `id` and the attributes
    deleted: np.ndarray  # slots of deleted rows
    merged: int  # number of slots that have entered the graph, unless they ended before
    graph: HnswGraph


class Shard:
    """Rows in an HNSW graph, and the latest rows beside it, searched exactly.

    A batch of changes is fast: new rows are appended, ended ones are marked. A thread moves rows
    into the graph later, a few at a time (`merge`), and rebuilds the graph without its tombstones
    (`compact`). A lock is held for each of these steps and for each query, so that a query sees a
    batch as a whole or not at all.

    Attributes:
        version: Version of the last batch that was applied.
    """

    def __init__(
        self, settings: IndexSettings, rows: SlotRows, graph: HnswGraph, merged: int, version: int
    ) -> None:
        """Adopt rows and the graph of the first `merged` of them; see `build` and `empty`."""
        self.settings, self.version = settings, version
        self._rows, self._graph, self._merged = rows, graph, merged
        self._lock = threading.Lock()
        # Merging, compaction and capture exclude each other; queries and changes do not wait.
        self._maintenance = threading.Lock()
        # Number of ended rows beside the graph.
        self._dead_aside = int((rows.died[merged : rows.length] != NEVER).sum())
        self._history = VersionHistory(version)
        self._conditions = FilterConditions(rows.table.schema)

    @classmethod
    def empty(cls, settings: IndexSettings, schema: pa.Schema, version: int = 0) -> Shard:
        """A shard without rows; `schema` is the schema of the attributes."""
        rows = SlotRows(settings.dim, schema)
        return cls(settings, rows, HnswGraph(settings, rows.vectors), 0, version)

    @classmethod
    def build(
        cls, settings: IndexSettings, ids: np.ndarray, vectors: np.ndarray, attributes: pa.Table,
        version: int, progress: Callable[[int], None] | None = None,
    ) -> Shard:  # fmt: skip
        """A shard with all rows, which are validated, in its graph.

        `progress` is called with the number of rows in the graph.
        """
        order = insertion_order(vectors, settings.seed)
        rows = SlotRows(settings.dim, attributes.schema, int(len(ids) * 1.1))
        rows.append(ids[order], vectors[order], attributes.take(order), version, NEVER)
        rows.index_ids()
        graph = HnswGraph(settings, rows.vectors[: len(ids)])
        for start in range(0, len(ids), 2000):
            end = min(start + 2000, len(ids))
            graph.add(np.arange(start, end), rows.vectors)
            if progress:
                progress(end)
        return cls(settings, rows, graph, len(ids), version)

    # --- counts ---

    def counts(self) -> dict[str, int]:
        """Version, rows, pending rows and tombstones."""
        return {
            "version": self.version, "rows": self.size, "pending": self.pending,
            "tombstones": self._graph.tombstones,
        }  # fmt: skip

    @property
    def size(self) -> int:
        """Number of living rows."""
        return len(self._rows.slot_of)

    @property
    def pending(self) -> int:
        """Number of rows beside the graph."""
        return self._rows.length - self._merged

    @property
    def needs_compaction(self) -> bool:
        """Whether more rows have ended, in the graph or not, than the settings allow."""
        with self._lock:
            rows = self._rows
            ended = rows.length - len(rows.slot_of)
            return ended > max(self.settings.max_tombstone_ratio * rows.length, _MIN_TOMBSTONES)

    # --- changes ---

    def apply(self, version: int, batch: ChangeBatch) -> None:
        """Apply a batch as a whole, as `version`."""
        with self._lock:
            slots = self._rows.change(batch, version)
            in_graph = slots[slots < self._merged]
            self._graph.delete(in_graph)
            self._dead_aside += len(slots) - len(in_graph)
            self._history.record(version, slots)
            self.version = version

    def merge(self, rows: int = _MERGE_ROWS) -> int:
        """Move some rows into the graph; return their number."""
        with self._maintenance, self._lock:
            slots = np.arange(self._merged, min(self._rows.length, self._merged + rows))
            if not len(slots):
                return 0
            dead = self._rows.died[slots] != NEVER
            if not dead.all():
                self._graph.add(slots[~dead], self._rows.vectors)
            self._dead_aside -= int(dead.sum())
            self._merged += len(slots)
            return len(slots)

    def compact(self, pause: Callable[[], None] | None = None) -> None:
        """Rebuild rows and graph without ended rows, aside, and swap them in.

        The shard is in memory twice meanwhile; `pause` is called after every few rows.
        """
        with self._maintenance:
            with self._lock:
                old, start = self._rows, self._rows.length
                alive, version, table = old.alive(), self.version, old.table
            count, rows = len(alive), old.take(alive, table)
            graph = HnswGraph(self.settings, rows.vectors[:count])
            for first in range(0, count, 64):
                last = min(first + 64, count)
                graph.add(np.arange(first, last), rows.vectors)
                if pause:
                    pause()
            # Most of the ids are prepared before the lock is taken.
            slot_of = dict(zip(rows.ids[:count].tolist(), range(count), strict=True))
            with self._lock:
                rows.died[:count] = old.died[alive]
                ended = np.flatnonzero(rows.died[:count] != NEVER)
                graph.delete(ended)
                for number in rows.ids[ended].tolist():
                    del slot_of[number]
                late = slice(start, old.length)
                rows.append(
                    old.ids[late], old.vectors[late], old.attributes(start), old.born[late],
                    old.died[late],
                )  # fmt: skip
                living = np.flatnonzero(rows.died[count : rows.length] == NEVER) + count
                slot_of.update(zip(rows.ids[living].tolist(), living.tolist(), strict=True))
                rows.slot_of = slot_of
                self._rows, self._graph, self._merged = rows, graph, count
                self._dead_aside = rows.length - count - len(living)
                # Rows that ended before are gone; rows that ended since have new slots.
                since = np.flatnonzero(rows.died[: rows.length] != NEVER)
                self._history = VersionHistory(version)
                self._history.record(self.version, since)
                self._conditions.forget()

    def capture(self, write: Callable[[ShardCapture], None]) -> None:
        """Call `write` with the present state, while queries and changes continue."""
        with self._maintenance:
            with self._lock:
                rows, length = self._rows, self._rows.length
                state = ShardCapture(
                    self.version, rows.ids[:length], rows.vectors[:length], rows.table,
                    np.flatnonzero(rows.died[:length] != NEVER), self._merged, self._graph,
                )  # fmt: skip
            write(state)

    # --- queries ---

    def search(
        self, vectors: np.ndarray, k: int, ef_search: int | None = None,
        filters: Sequence[str | None] | None = None, as_of: int | None = None,
    ) -> tuple[int, np.ndarray, np.ndarray]:  # fmt: skip
        """The k nearest rows of each vector.

        Args:
            vectors: float32 `(n, dim)`, validated; of any length under "cosine".
            k: Number of neighbours.
            ef_search: Size of the candidate list; the settings' by default.
            filters: A predicate for each vector, or None for none at all.
            as_of: Version to answer for, unless it has expired; the present by default.

        Returns:
            The version, and ids int64 and distances float32 `(n, k)`, padded.
        """
        if self.settings.metric == "cosine":
            vectors = normalized(vectors)
        ef = ef_search or self.settings.ef_search
        # A filter that cannot be parsed raises before any search.
        texts = [text for text in filters or () if text is not None]
        intervals = self._conditions.parse(texts) if texts else {}
        unranged = {text for text, ranges in intervals.items() if ranges is None}
        parts = []
        for start in range(0, max(1, len(vectors)), _CHUNK_QUERIES):
            chunk = slice(start, start + _CHUNK_QUERIES)
            evaluated = self._evaluated(unranged.intersection(filters[chunk])) if filters else None
            with self._lock:
                # A long batch releases the lock in between, and stays at its first version.
                as_of = version = self._readable(as_of)
                self._adopt(evaluated)
                conditions = self._conditions_of(filters[chunk], intervals) if filters else None
                parts.append(self._nearest(vectors[chunk], k, ef, conditions, version))
        if len(parts) == 1:
            return version, *parts[0]
        ids, distances = map(np.concatenate, zip(*parts, strict=True))
        return version, ids, distances

    def matching(self, text: str | None, limit: int) -> np.ndarray:
        """Up to `limit` ids of rows that satisfy a predicate, unordered."""
        text = text or "True"
        self._conditions.parse([text])
        evaluated = self._evaluated([text])
        with self._lock:
            self._adopt(evaluated)
            slots = np.flatnonzero(self._conditions.mask(self._rows, text))
            self._conditions.trim()
            return self._rows.ids[slots[self._rows.visible(slots, self.version)][:limit]]

    def get(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, pa.Table]:
        """The living rows among these ids: ids, vectors, attributes."""
        with self._lock:
            rows = self._rows
            living = [rows.slot_of.get(number) for number in ids.tolist()]
            slots = np.array([slot for slot in living if slot is not None], np.int64)
            return rows.ids[slots], rows.vectors[slots], rows.attributes().take(slots)

    def sample(self, rows: int, seed: int) -> np.ndarray:
        """Vectors of up to `rows` random rows, float32 `(n, dim)`."""
        with self._lock:
            alive = self._rows.alive()
            rng = np.random.default_rng(seed)
            return self._rows.vectors[rng.choice(alive, min(rows, len(alive)), replace=False)]

    def exact(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The true k nearest, by comparison with every row."""
        if self.settings.metric == "cosine":
            vectors = normalized(vectors)
        with self._lock:
            alive = self._rows.alive()
            if not len(alive):
                return padding(len(vectors), k)
            # No copy of the rows if all are alive.
            is_all = len(alive) == self._rows.length
            rows = self._rows.vectors[slice(0, len(alive)) if is_all else alive]
            positions, distances = exact_search(vectors, rows, k, self.settings.metric)
            answers = padding(len(vectors), k)
            answers[0][:, : positions.shape[1]] = self._rows.ids[alive[positions]]
            answers[1][:, : positions.shape[1]] = distances
            return answers

    def _readable(self, as_of: int | None) -> int:
        if as_of is None:
            return self.version
        self._history.check(as_of)
        return min(as_of, self.version)

    def _evaluated(self, texts: Collection[str]) -> tuple[SlotRows, dict[str, np.ndarray]] | None:
        """The rows, and masks of them: computed without the lock, for which others would wait."""
        if not texts:
            return None
        with self._lock:
            rows, table = self._rows, self._rows.table
            masks = self._conditions.masks_of(texts)
        extended = self._conditions.extended
        return rows, {text: extended(mask, table, text) for text, mask in masks.items()}

    def _adopt(self, evaluated: tuple[SlotRows, dict[str, np.ndarray]] | None) -> None:
        """Keep masks, unless a compaction has moved the rows since."""
        if evaluated and evaluated[0] is self._rows:
            self._conditions.remember(evaluated[1])

    def _conditions_of(
        self, filters: Sequence[str | None], intervals: Mapping[str, Intervals | None]
    ) -> list[Conditions | None]:
        """The conditions of each filter; equal filters are one object, as the search wants it."""
        distinct = {
            text: self._conditions.of(self._rows, text, intervals[text])
            for text in dict.fromkeys(filters)
            if text is not None
        }
        self._conditions.trim()
        return [None if text is None else distinct[text] for text in filters]

    def _nearest(
        self, vectors: np.ndarray, k: int, ef: int, filters: Sequence[Conditions | None] | None,
        version: int,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """The k nearest by the graph and among the rows beside it; by all rows where it fails."""
        rows, metric = self._rows, self.settings.metric
        if not rows.length:
            return padding(len(vectors), k)
        slots, distances = self._graph.search(rows.vectors, vectors, k, ef, filters)
        ids, is_open = self._ids(slots), slots[:, -1] < 0
        if version < self.version:  # the graph is of the present
            is_open |= (rows.born[slots] > version).any(axis=1)
        if version < self.version or rows.length > self._merged + self._dead_aside:
            aside = self._aside(version)
            beside = exact_nearest(rows.vectors, aside, vectors, k, metric, filters)
            ids, distances = merge([(ids, distances), (self._ids(beside[0]), beside[1])], k)
        if is_open.any():
            open_filters = filters and [
                filters[query] for query in np.flatnonzero(is_open).tolist()
            ]
            visible = rows.visibility(version)
            slots, distances[is_open] = exact_nearest(
                rows.vectors, rows.length, vectors[is_open], k, metric, open_filters, visible
            )
            ids[is_open] = self._ids(slots)
        return ids, distances

    def _aside(self, version: int) -> np.ndarray:
        """Slots visible at a version that the graph does not cover, ascending."""
        slots = np.arange(self._merged, self._rows.length)
        if version < self.version:
            slots = np.unique(np.concatenate([*self._history.ended_after(version), slots]))
        return slots[self._rows.visible(slots, version)]

    def _ids(self, slots: np.ndarray) -> np.ndarray:
        ids = self._rows.ids.take(slots, mode="wrap")  # a missing slot is -1
        if slots.size and slots[:, -1].min() < 0:
            ids[slots < 0] = NO_ID
        return ids
