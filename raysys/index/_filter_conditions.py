"""Filters in the form in which a search evaluates them, for the rows that it visits."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from raysys.index._filter import Filter
    from raysys.index._slot_rows import SlotRows

# Columns by slot, and the lowest and highest value of a matching row.
Conditions = tuple[tuple[np.ndarray, int | float, int | float], ...]
_MAX_MASKS = 32


class FilterConditions:
    """The conditions of filters, and masks of all rows for those that are not ranges of numbers."""

    def __init__(self) -> None:
        self._masks: collections.OrderedDict[Filter, np.ndarray] = collections.OrderedDict()

    def of(self, rows: SlotRows, predicate: Filter) -> Conditions:
        """The conditions of a filter; valid until rows are added."""
        if predicate.intervals is not None:
            columns = [(rows.numbers(name), *ends) for name, ends in predicate.intervals.items()]
            if all(column is not None for column, _, _ in columns):
                return tuple(columns)  # type: ignore[arg-type]
        return ((self.mask(rows, predicate), 1, 1),)

    def mask(self, rows: SlotRows, predicate: Filter) -> np.ndarray:
        """Whether each row satisfies a filter, bool `(length,)`; ended rows too."""
        # A slot's content never changes: only new slots are filtered.
        mask = self._masks.pop(predicate, np.empty(0, bool))
        if len(mask) < rows.length:
            mask = np.concatenate([mask, rows.mask(predicate, len(mask))])
        self._masks[predicate] = mask
        if len(self._masks) > _MAX_MASKS:
            self._masks.popitem(last=False)
        return mask
