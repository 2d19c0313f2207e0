"""Rows of a shard by slot, append-only, so that a view of them stays valid; recent versions."""

from __future__ import annotations

import collections
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.index._rows import with_id

if TYPE_CHECKING:
    from raysys.index._change_record import ChangeBatch
    from raysys.index._filter_conditions import Conditions

NEVER = np.iinfo(np.int64).max
_LINE = 16  # floats
_NO_NUMBERS = np.empty(0)
# How long a shard can answer as of an earlier version: a client that got answers of different
# versions from its shards asks for the lowest.
HORIZON_S = 10.0


class SlotRows:
    """Ids, vectors and attributes in order of arrival, with the versions of birth and death.

    A row's slot and content never change; a changed row is a new row in a new slot and the death
    of the old one. Two numbers therefore tell whether a row was in the index at a version.

    Attributes:
        length: Slots in use.
        ids: int64, by slot, as the following arrays; longer than `length`.
        vectors: float32 `(capacity, dim)`.
        born: Version that added the row.
        died: Version that ended the row, or NEVER.
        slot_of: Slot of the living row of an id.
    """

    def __init__(self, dim: int, schema: pa.Schema, capacity: int = 0) -> None:
        self.length = 0
        self.ids = np.empty(capacity, np.int64)
        self.vectors = _aligned(capacity, dim)
        self.born = np.empty(capacity, np.int64)
        self.died = np.empty(capacity, np.int64)
        self.slot_of: dict[int, int] = {}
        self._schema = schema
        self._chunks: list[pa.Table] = []
        self._table: pa.Table | None = None
        self._columns: dict[str, np.ndarray | None] = {}

    @property
    def table(self) -> pa.Table:
        """`id` and the attributes of all slots, as filters see them."""
        if self._table is None:
            empty = with_id(np.empty(0, np.int64), self._schema.empty_table())
            self._table = pa.concat_tables([empty, *self._chunks])
        return self._table

    def append(
        self, ids: np.ndarray, vectors: np.ndarray, attributes: pa.Table, born: Any, died: Any
    ) -> None:
        """Add rows; the caller updates `slot_of`."""
        if not len(ids):
            return
        start, end = self.length, self.length + len(ids)
        if end > len(self.ids):
            self._grow(max(end, len(self.ids) + len(self.ids) // 2, 1024))
        self.ids[start:end], self.vectors[start:end] = ids, vectors
        self.born[start:end], self.died[start:end] = born, died
        self._chunks.append(with_id(ids, attributes))
        # As a binary counter: few chunks, and each row is copied O(log n) times.
        while len(self._chunks) > 1 and len(self._chunks[-2]) <= 2 * len(self._chunks[-1]):
            self._chunks[-2:] = [pa.concat_tables(self._chunks[-2:]).combine_chunks()]
        self._table = None
        self.length = end

    def change(self, batch: ChangeBatch, version: int) -> np.ndarray:
        """Apply a batch of changes; return the slots of the rows that it ended."""
        new = batch.ids.tolist()
        ended = [self.slot_of.pop(number, None) for number in (*new, *batch.deleted.tolist())]
        slots = np.array([slot for slot in ended if slot is not None], np.int64)
        self.died[slots] = version
        start = self.length
        self.append(batch.ids, batch.vectors, batch.attributes, version, NEVER)
        self.slot_of.update(zip(new, range(start, self.length), strict=True))
        return slots

    def take(self, slots: np.ndarray, table: pa.Table) -> SlotRows:
        """A copy of some rows in new slots; `table` is the table when the slots were selected."""
        rows = SlotRows(self.vectors.shape[1], self._schema, int(len(slots) * 1.1))
        rows.ids[: len(slots)] = self.ids[slots]
        np.take(self.vectors, slots, axis=0, out=rows.vectors[: len(slots)])
        rows.born[: len(slots)], rows.died[: len(slots)] = self.born[slots], self.died[slots]
        rows._chunks = [table.take(slots).combine_chunks()]
        rows.length = len(slots)
        return rows

    def attributes(self, start: int = 0) -> pa.Table:
        """The attribute columns, from a slot on."""
        return self.table.drop_columns("id").slice(start)

    def numbers(self, name: str) -> np.ndarray | None:
        """A column of numbers, integers in as few bytes as hold them; None if it has nulls."""
        if name == "id":
            return self.ids[: self.length]
        known = self._columns.get(name, _NO_NUMBERS)
        if known is not None and len(known) < self.length:
            column = self.table[name].slice(len(known))
            new = None if column.null_count else _narrow(column.to_numpy())
            known = new if new is None or not len(known) else np.concatenate([known, new])
            self._columns[name] = known
        return known

    def index_ids(self) -> None:
        """Fill `slot_of` from the living rows."""
        alive = self.alive()
        self.slot_of = dict(zip(self.ids[alive].tolist(), alive.tolist(), strict=True))

    def alive(self) -> np.ndarray:
        """Slots of the living rows."""
        return np.flatnonzero(self.died[: self.length] == NEVER)

    def visible(self, slots: np.ndarray, version: int) -> np.ndarray:
        """Whether each of the slots was in the index at a version, bool."""
        return (self.born[slots] <= version) & (self.died[slots] > version)

    def visibility(self, version: int) -> Conditions:
        """The same of all slots, for a search."""
        limits, length = np.iinfo(np.int64), self.length
        born = self.born[:length], limits.min, version
        return born, (self.died[:length], version + 1, limits.max)

    def _grow(self, capacity: int) -> None:
        for name in ("ids", "vectors", "born", "died"):
            old = getattr(self, name)
            is_matrix = old.ndim == 2
            new = _aligned(capacity, old.shape[1]) if is_matrix else np.empty(capacity, old.dtype)
            new[: self.length] = old[: self.length]
            setattr(self, name, new)


def _narrow(numbers: np.ndarray) -> np.ndarray:
    """Integers in the smallest type that holds them: a search reads fewer lines of memory."""
    if numbers.dtype.kind in "iu" and len(numbers):
        for dtype in (np.int8, np.int16, np.int32):
            limits = np.iinfo(dtype)
            if limits.min <= numbers.min() and numbers.max() <= limits.max:
                return numbers.astype(dtype)
    return numbers


def _aligned(rows: int, dim: int) -> np.ndarray:
    """A float32 matrix at a line of the processor's cache, else a row of it is in one line more."""
    memory = np.empty(rows * dim + _LINE, np.float32)
    start = -(memory.ctypes.data // memory.itemsize) % _LINE
    return memory[start : start + rows * dim].reshape(rows, dim)


class VersionExpiredError(Exception):
    """The requested version is older than the shard remembers: request the present one."""


class VersionHistory:
    """Slots of the rows that ended within the last seconds, by version."""

    def __init__(self, version: int) -> None:
        self._oldest = version
        self._deaths: collections.deque[tuple[float, int, np.ndarray]] = collections.deque()

    def record(self, version: int, slots: np.ndarray) -> None:
        """Add the slots that a version ended, and forget old versions."""
        now = time.monotonic()
        self._deaths.append((now, version, slots))
        while self._deaths and self._deaths[0][0] < now - HORIZON_S:
            self._oldest = self._deaths.popleft()[1]

    def ended_after(self, version: int) -> list[np.ndarray]:
        """Slots that later versions ended."""
        return [slots for _, when, slots in self._deaths if when > version]

    def check(self, version: int) -> None:
        """Refuse a version that is older than the history: `VersionExpiredError`."""
        if version < self._oldest:
            raise VersionExpiredError(
                f"version {version} has expired, the oldest available is {self._oldest}"
            )
