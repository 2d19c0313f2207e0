"""Plans of filtered queries: through the graph, or by comparison with all matching rows."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from raysys.index._filter import Filter
    from raysys.index._settings import IndexSettings
    from raysys.index._slot_rows import SlotRows

_SAMPLE = 1024
_MIN_MATCHES = 4
_MAX_CACHED_FILTERS = 32
# Microseconds on one core; only the ratios matter.
_PER_CANDIDATE = 2.0  # of the graph, at 128 dimensions
_PER_ROW_FILTERED, _PER_NUMBER_FILTERED = 0.004, 0.001
_PER_BYTE_GATHERED = 1.2e-4
_PER_ROW_GATHERED = 0.05
_PER_PRODUCT = 2e-4


@dataclass(frozen=True)
class QueryPlan:
    """Estimated costs of both ways to answer queries with a filter, in microseconds."""

    k: int
    selectivity: float  # share of the rows that match, 0 if too few match for an estimate
    candidate_cost: float  # of a candidate of the graph, per query
    exact_fixed_cost: float  # of finding and gathering the matching rows
    exact_query_cost: float  # of comparing them with a query

    def candidates(self, queries: int, ef: int) -> int:
        """Number of neighbours to request from the graph so that k match; 0: search exactly."""
        if not self.selectivity:
            return 0
        # Enough that k match in nine of ten queries.
        candidates = math.ceil((self.k + 1.5 * math.sqrt(self.k) + 1) / self.selectivity)
        return self.unless_exact_is_cheaper(queries, max(candidates, self.k), ef)

    def unless_exact_is_cheaper(self, queries: int, candidates: int, ef: int = 0) -> int:
        """The number of candidates, or 0 if an exact search costs less than their request."""
        graph_cost = queries * max(ef, candidates) * self.candidate_cost
        exact_cost = self.exact_fixed_cost + queries * self.exact_query_cost
        return candidates if graph_cost < exact_cost else 0


class QueryPlanner:
    """Estimates of the selectivity of filters, and the matching rows of recent ones.

    The cost of searching the graph for `k / selectivity` candidates rises with the rows that a
    filter drops, that of comparing with every matching row falls. A sample of the rows estimates
    the selectivity.
    """

    def __init__(self, settings: IndexSettings) -> None:
        self._dim = settings.dim
        self._sample: np.ndarray | None = None
        self._sampled_at = 0
        self._cache: collections.OrderedDict[Filter, tuple[int, np.ndarray]] = (
            collections.OrderedDict()
        )

    def plan(self, rows: SlotRows, predicate: Filter, k: int) -> QueryPlan:
        """The plan of a filter, estimated from a sample."""
        slots = self._slots(rows)
        matches = int(rows.mask(predicate, slots).sum()) if len(slots) else 0
        share = matches / max(1, len(slots))
        unfiltered = rows.length - self._cache.get(predicate, (0, None))[0]
        per_row = _PER_NUMBER_FILTERED if predicate.is_numeric else _PER_ROW_FILTERED
        return QueryPlan(
            k=k,
            selectivity=share if matches >= _MIN_MATCHES else 0.0,
            candidate_cost=_PER_CANDIDATE * math.sqrt(self._dim / 128),
            exact_fixed_cost=unfiltered * per_row
            + share * len(rows.slot_of) * (_PER_ROW_GATHERED + 4 * self._dim * _PER_BYTE_GATHERED),
            exact_query_cost=share * len(rows.slot_of) * self._dim * _PER_PRODUCT,
        )

    def matching(self, rows: SlotRows, predicate: Filter) -> np.ndarray:
        """Slots of all rows that satisfy a filter, including ended ones, ascending."""
        # A slot's content never changes: only new slots are filtered.
        upto, slots = self._cache.pop(predicate, (0, np.empty(0, np.int64)))
        if upto < rows.length:
            new = np.flatnonzero(rows.mask(predicate, slice(upto, None))) + upto
            slots = np.concatenate([slots, new])
        self._cache[predicate] = rows.length, slots
        if len(self._cache) > _MAX_CACHED_FILTERS:
            self._cache.popitem(last=False)
        return slots

    def _slots(self, rows: SlotRows) -> np.ndarray:
        """A sample of the living rows, drawn again after a fifth of the rows is new."""
        if self._sample is None or rows.length > 1.2 * self._sampled_at:
            alive = rows.alive()
            if len(alive) > _SAMPLE:
                rng = np.random.default_rng(0)
                alive = alive[np.sort(rng.integers(0, len(alive), _SAMPLE))]
            self._sample, self._sampled_at = alive, rows.length
        return self._sample


def group_by_filter(
    rows: int, filters: Sequence[str | None] | None, size: int
) -> Iterable[tuple[np.ndarray, str | None]]:
    """Positions of queries with the same filter, at most `size` at a time, and the filter."""
    by_text: dict[str | None, list[int]] = {}
    for row, text in enumerate(filters or [None] * rows):
        by_text.setdefault(text, []).append(row)
    for text, members in by_text.items():
        for start in range(0, len(members), size):
            yield np.array(members[start : start + size]), text
