"""How a filtered query is answered: through the graph, or by comparing with all that match."""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from raysys.index._filter import Filter
    from raysys.index._slot_rows import Rows
    from raysys.index._types import Settings

_SAMPLE = 1024
_FEW = 4
_REMEMBERED = 32
# Microseconds on one core; only their ratios matter.
_PER_CANDIDATE = 2.0  # of the graph, at 128 dimensions
_PER_ROW_COMPARED, _PER_NUMBER_COMPARED = 0.004, 0.001  # with a filter
_PER_BYTE_GATHERED = 1.2e-4
_PER_ROW_GATHERED = 0.05
_PER_PRODUCT = 2e-4


@dataclass(frozen=True)
class Plan:
    """What the two ways to answer cost for one filter, in microseconds.

    Attributes:
        k: Neighbours wanted.
        share: Of the rows that match, 0 if too few do to tell.
        per_candidate: Of the graph, for each query.
        exact_once: Finding and gathering the rows that match.
        exact_each: Comparing them with a query.
    """

    k: int
    share: float
    per_candidate: float
    exact_once: float
    exact_each: float

    def candidates(self, queries: int, ef: int) -> int:
        """How many neighbours to ask the graph for so that k match; 0 to search exactly."""
        if not self.share:
            return 0
        # So many that in nine of ten queries enough match.
        wanted = math.ceil((self.k + 1.5 * math.sqrt(self.k) + 1) / self.share)
        return self._unless_exact_is_cheaper(queries, max(wanted, self.k), ef)

    def more(self, queries: int, wanted: int) -> int:
        """How many after `wanted` did not do for some queries; 0 to search exactly."""
        return self._unless_exact_is_cheaper(queries, 4 * wanted, 0)

    def _unless_exact_is_cheaper(self, queries: int, wanted: int, ef: int) -> int:
        graph = queries * max(ef, wanted) * self.per_candidate
        return wanted if graph < self.exact_once + queries * self.exact_each else 0


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

    def plan(self, rows: Rows, chosen: Filter, k: int) -> Plan:
        """What a sample says of a filter."""
        slots = self._slots(rows)
        matching = int(rows.mask(chosen, slots).sum()) if len(slots) else 0
        share = matching / max(1, len(slots))
        unknown = rows.length - self._remembered.get(chosen, (0, None))[0]
        per_row = _PER_NUMBER_COMPARED if chosen.is_numeric else _PER_ROW_COMPARED
        return Plan(
            k=k,
            share=share if matching >= _FEW else 0.0,
            per_candidate=_PER_CANDIDATE * math.sqrt(self._dim / 128),
            exact_once=unknown * per_row
            + share * len(rows.slot_of) * (_PER_ROW_GATHERED + 4 * self._dim * _PER_BYTE_GATHERED),
            exact_each=share * len(rows.slot_of) * self._dim * _PER_PRODUCT,
        )

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
