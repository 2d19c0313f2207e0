"""Filters in the form in which a search evaluates them, for the rows that it visits."""

from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING

import numpy as np

from raysys.index._filter import Filter
from raysys.index._filter_intervals import IntervalParser

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

    from raysys.index._filter_intervals import Intervals
    from raysys.index._slot_rows import SlotRows

# Columns by slot, and the lowest and highest value of a matching row.
Conditions = tuple[tuple[np.ndarray, int | float, int | float], ...]
_MAX_MASKS, _MAX_FILTER_BYTES = 32, 16 << 20
# Ranges of numbers are short; a longer filter is left to the parser.
_MAX_RANGE_CHARACTERS = 1000
_NO_MASK = np.empty(0, bool)


class FilterConditions:
    """The conditions of filters, and masks of all rows for those that are not ranges of numbers."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._intervals = schema, IntervalParser(schema)
        self._masks: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self._filters: collections.OrderedDict[str, Filter] = collections.OrderedDict()
        self._filter_bytes, self._filters_lock = 0, threading.Lock()

    def parse(self, texts: Iterable[str]) -> dict[str, Intervals | None]:
        """The intervals of each text, None of any other filter; refuses invalid ones."""
        parsed: dict[str, Intervals | None] = dict.fromkeys(texts)
        try:
            ranges = [text for text in parsed if len(text) <= _MAX_RANGE_CHARACTERS]
            parsed.update(zip(ranges, self._intervals(ranges), strict=True))
        except TypeError:  # other values than texts, which are refused below
            pass
        for text, intervals in parsed.items():
            if intervals is None:
                self._filter(text)
        return parsed

    def of(self, rows: SlotRows, text: str, intervals: Intervals | None) -> Conditions:
        """The conditions of a parsed filter; valid until rows are added."""
        if intervals is not None:
            conditions = []
            for name, low, high in intervals:
                if (column := rows.numbers(name)) is None:
                    break
                conditions.append((column, low, high))
            else:
                return tuple(conditions)
        return ((self.mask(rows, text), 1, 1),)

    def mask(self, rows: SlotRows, text: str) -> np.ndarray:
        """Whether each row satisfies a filter, bool `(length,)`; ended rows too."""
        self._masks[text] = mask = self.extended(self._masks.pop(text, _NO_MASK), rows.table, text)
        return mask

    def masks_of(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """The masks so far of some filters, for `extended`."""
        return {text: self._masks.get(text, _NO_MASK) for text in texts}

    def extended(self, mask: np.ndarray, table: pa.Table, text: str) -> np.ndarray:
        """A mask of the first rows of a table, extended to all of them: slots never change."""
        if len(mask) >= len(table):
            return mask
        return np.concatenate([mask, self._filter(text).mask(table.slice(len(mask)))])

    def remember(self, masks: Mapping[str, np.ndarray]) -> None:
        """Adopt masks of the present rows."""
        self._masks |= masks

    def trim(self) -> None:
        """Drop the oldest masks beyond the limit."""
        while len(self._masks) > _MAX_MASKS:
            self._masks.popitem(last=False)

    def forget(self) -> None:
        """Drop the masks, of rows whose slots have changed."""
        self._masks.clear()

    def _filter(self, text: str) -> Filter:
        """A compiled filter, or one of the latest, within a limit of memory."""
        with self._filters_lock:
            if (compiled := self._filters.get(text)) is not None:
                self._filters.move_to_end(text)
                return compiled
        compiled = Filter(text, self._schema)
        with self._filters_lock:
            if text not in self._filters:
                self._filters[text] = compiled
                self._filter_bytes += compiled.memory_bytes
            while self._filter_bytes > _MAX_FILTER_BYTES:
                _, oldest = self._filters.popitem(last=False)
                self._filter_bytes -= oldest.memory_bytes
        return compiled
