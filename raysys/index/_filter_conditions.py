"""Filters in the form in which a search evaluates them, for the rows that it visits."""

from __future__ import annotations

import collections
import functools
from typing import TYPE_CHECKING

import numpy as np

from raysys.index._filter import Filter
from raysys.index._filter_intervals import IntervalParser

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

    from raysys.index._filter_intervals import Intervals
    from raysys.index._slot_rows import SlotRows

# Columns by slot, and the lowest and highest value of a matching row.
Conditions = tuple[tuple[np.ndarray, int | float, int | float], ...]
_MAX_MASKS = 32


class FilterConditions:
    """The conditions of filters, and masks of all rows for those that are not ranges of numbers."""

    def __init__(self, schema: pa.Schema) -> None:
        self._intervals = IntervalParser(schema)
        self._filter = functools.lru_cache(1024)(lambda text: Filter(text, schema))
        self._masks: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()

    def parse(self, texts: Iterable[str]) -> dict[str, Intervals | None]:
        """The intervals of each text, None of any other filter; refuses invalid ones."""
        distinct = list(dict.fromkeys(texts))
        try:
            parsed = self._intervals(distinct)
        except TypeError:  # other values than texts, which are refused below
            parsed = [None] * len(distinct)
        for text, intervals in zip(distinct, parsed, strict=True):
            if intervals is None:
                self._filter(text)
        return dict(zip(distinct, parsed, strict=True))

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
        # A slot's content never changes: only new slots are filtered.
        mask = self._masks.pop(text, np.empty(0, bool))
        if len(mask) < rows.length:
            mask = np.concatenate([mask, rows.mask(self._filter(text), len(mask))])
        self._masks[text] = mask
        if len(self._masks) > _MAX_MASKS:
            self._masks.popitem(last=False)
        return mask

    def forget(self) -> None:
        """Drop the masks, of rows whose slots have changed."""
        self._masks.clear()
