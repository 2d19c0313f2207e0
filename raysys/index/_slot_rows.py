"""The rows of a shard by slot: only appended to, so that a view of them stays true."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.index._types import with_id

if TYPE_CHECKING:
    from raysys.index._change_record import Batch
    from raysys.index._filter import Filter

NEVER = np.iinfo(np.int64).max


class Rows:
    """Ids, vectors and attributes in the order of their arrival, and when each came and went.

    A row's slot never changes and its content neither; a changed row is a new one in a new slot
    and the end of the old. So what stood in the index at a version is told by two numbers.

    Attributes:
        length: Slots in use.
        ids: int64, by slot, like the following; longer than `length`.
        vectors: float32 `(capacity, dim)`.
        born: Version that brought the row.
        died: Version that ended it, or NEVER.
        slot_of: The living row of an id.
    """

    def __init__(self, dim: int, schema: pa.Schema, capacity: int = 0) -> None:
        self.length = 0
        self.ids = np.empty(capacity, np.int64)
        self.vectors = np.empty((capacity, dim), np.float32)
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
            none = with_id(np.empty(0, np.int64), self._schema.empty_table())
            self._table = pa.concat_tables([none, *self._chunks])
        return self._table

    def append(
        self, ids: np.ndarray, vectors: np.ndarray, attributes: pa.Table, born: Any, died: Any
    ) -> None:
        """Add rows; `slot_of` is the caller's matter."""
        if not len(ids):
            return  # the columns that filters look at stay as they are
        start, end = self.length, self.length + len(ids)
        if end > len(self.ids):
            self._grow(max(end, len(self.ids) + len(self.ids) // 2, 1024))
        self.ids[start:end], self.vectors[start:end] = ids, vectors
        self.born[start:end], self.died[start:end] = born, died
        self._chunks.append(with_id(ids, attributes))
        # Like a binary counter: few chunks, and each row is copied a logarithm of times.
        while len(self._chunks) > 1 and len(self._chunks[-2]) <= 2 * len(self._chunks[-1]):
            self._chunks[-2:] = [_concat(self._chunks[-2:])]
        self._table = None
        self._columns.clear()
        self.length = end

    def change(self, batch: Batch, version: int) -> np.ndarray:
        """Apply a batch of changes; tell the slots whose rows have ended by it."""
        new = batch.ids.tolist()
        ended = [self.slot_of.pop(number, None) for number in (*new, *batch.deleted.tolist())]
        slots = np.array([slot for slot in ended if slot is not None], np.int64)
        self.died[slots] = version
        start = self.length
        self.append(batch.ids, batch.vectors, batch.attributes, version, NEVER)
        self.slot_of.update(zip(new, range(start, self.length), strict=True))
        return slots

    def take(self, slots: np.ndarray, table: pa.Table) -> Rows:
        """A copy of some rows in new slots; `table` is that of when these slots were known."""
        made = Rows(self.vectors.shape[1], self._schema, int(len(slots) * 1.1))
        made.ids[: len(slots)] = self.ids[slots]
        np.take(self.vectors, slots, axis=0, out=made.vectors[: len(slots)])
        made.born[: len(slots)], made.died[: len(slots)] = self.born[slots], self.died[slots]
        made._chunks = [table.take(slots).combine_chunks()]
        made.length = len(slots)
        return made

    def attributes(self, start: int = 0) -> pa.Table:
        """The attribute columns, from a slot on."""
        return self.table.drop_columns("id").slice(start)

    def mask(self, chosen: Filter, slots: np.ndarray | slice) -> np.ndarray:
        """Which of these slots satisfy a filter, bool; `slots` ascending or not, or a slice."""
        if chosen.is_numeric:
            columns = {name: self._numbers(name) for name in chosen.names}
            if all(column is not None for column in columns.values()):
                return chosen.mask({name: column[slots] for name, column in columns.items()})  # type: ignore[index]
        if isinstance(slots, slice):
            return chosen.mask(self.table.slice(slots.start))
        return chosen.mask(self.table.take(slots))

    def _numbers(self, name: str) -> np.ndarray | None:
        """A column as an array, or None if it has nulls."""
        if name == "id":
            return self.ids[: self.length]
        if name not in self._columns:
            column = self.table[name]
            self._columns[name] = None if column.null_count else column.to_numpy()
        return self._columns[name]

    def index_ids(self) -> None:
        """Fill `slot_of` from the living rows."""
        alive = self.alive()
        self.slot_of = dict(zip(self.ids[alive].tolist(), alive.tolist(), strict=True))

    def alive(self) -> np.ndarray:
        """Slots of the living rows."""
        return np.flatnonzero(self.died[: self.length] == NEVER)

    def visible(self, slots: np.ndarray, version: int) -> np.ndarray:
        """Which of these stood in the index at a version, bool."""
        return (self.born[slots] <= version) & (self.died[slots] > version)

    def _grow(self, capacity: int) -> None:
        for name in ("ids", "vectors", "born", "died"):
            old = getattr(self, name)
            new = np.empty((capacity, *old.shape[1:]), old.dtype)
            new[: self.length] = old[: self.length]
            setattr(self, name, new)


def _concat(chunks: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(chunks).combine_chunks()
