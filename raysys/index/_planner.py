"""How a filtered query is answered: through the graph, or by comparing with all that match."""

from __future__ import annotations

import collections
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from raysys.index._filter import Filter
    from raysys.index._rows import Rows
    from raysys.index._types import Settings

_SAMPLE = 1024
_REMEMBERED = 32
# Microseconds on one core; only their ratios matter.
_PER_CANDIDATE = 2.2  # of the graph, at 128 dimensions
_PER_ROW_MASKED = 0.004
_PER_BYTE_GATHERED = 1.2e-4
_PER_ROW_GATHERED = 0.05
_PER_PRODUCT = 2e-4


class Planner:
    """Estimates of what a filter keeps, and the rows of filters asked for before.

    Searching the graph for `k / share` candidates costs the more the fewer rows a filter keeps;
    comparing with every row that it keeps costs the less. A sample of the rows tells the share.
    """

    def __init__(self, settings: Settings) -> None:
        self._dim = settings.dim
        self._sample: np.ndarray | None = None
        self._sampled_at = 0
        self._remembered: collections.OrderedDict[Filter, tuple[int, np.ndarray]] = (
            collections.OrderedDict()
        )

    def candidates(self, rows: Rows, chosen: Filter, queries: int, k: int, ef: int) -> int:
        """How many neighbours to ask the graph for so that k match; 0 to search exactly."""
        slots = self._slots(rows)
        if not len(slots):
            return 0
        matching = int(rows.mask(chosen, slots).sum())
        share = matching / len(slots)
        if matching < 4:  # too few to tell the share
            return 0
        wanted = math.ceil((k + 1.5 * math.sqrt(k) + 1) / share)
        return self._unless_exact_is_cheaper(rows, chosen, queries, max(wanted, k), ef, share)

    def more(self, rows: Rows, chosen: Filter, queries: int, wanted: int) -> int:
        """`wanted` neighbours, after fewer did not do; 0 if exact search now costs less."""
        slots = self._slots(rows)
        share = float(rows.mask(chosen, slots).mean())
        return self._unless_exact_is_cheaper(rows, chosen, queries, wanted, 0, share)

    def matching(self, rows: Rows, chosen: Filter) -> np.ndarray:
        """Slots of all rows that satisfy a filter, ended ones among them, ascending."""
        # A slot's content never changes: only what came since must be looked at.
        upto, slots = self._remembered.pop(chosen, (0, np.empty(0, np.int64)))
        if upto < rows.length:
            more = np.flatnonzero(rows.mask(chosen, slice(upto, None))) + upto
            slots = np.concatenate([slots, more])
        self._remembered[chosen] = rows.length, slots
        if len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return slots

    def _unless_exact_is_cheaper(
        self, rows: Rows, chosen: Filter, queries: int, wanted: int, ef: int, share: float
    ) -> int:
        looked_at = max(ef, wanted + wanted // 4)
        graph = queries * looked_at * _PER_CANDIDATE * math.sqrt(self._dim / 128)
        matching = share * len(rows.slot_of)
        masked = rows.length - self._remembered.get(chosen, (0, None))[0]
        exact = (
            masked * _PER_ROW_MASKED
            + matching * (_PER_ROW_GATHERED + 4 * self._dim * _PER_BYTE_GATHERED)
            + queries * matching * self._dim * _PER_PRODUCT
        )
        return wanted if graph < exact else 0

    def _slots(self, rows: Rows) -> np.ndarray:
        """A sample of the living rows, drawn anew when a fifth of the rows is new."""
        if self._sample is None or rows.length > 1.2 * self._sampled_at:
            alive = rows.alive()
            rng = np.random.default_rng(0)
            self._sample = (
                alive[np.sort(rng.integers(0, len(alive), _SAMPLE))]
                if len(alive) > _SAMPLE
                else alive
            )
            self._sampled_at = rows.length
        return self._sample
