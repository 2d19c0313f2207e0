"""Rows in several splits, by an exchange of hashes between tasks."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.data._blocks import results, value_task
from raysys.data._order_statistics import count_groups, value_of
from raysys.data._row_hash import hash_rows
from raysys.data._row_numbers import each_block, numbered
from raysys.data.sampling._split_time import time_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from raysys.data._table import Table

# A key in a block: two hashes, numbers of the comparison and the split, its rows, the first one.
_ENTRY = np.dtype(
    [
        ("high", "u8"), ("low", "u8"), ("comparison", "u2"), ("split", "u2"), ("rows", "i8"),
        ("row", "i8"),
    ]
)  # fmt: skip
_ENTRIES_A_TASK = 2_000_000
_EXAMPLES = 3


@dataclass(frozen=True)
class RowComparison:
    """Columns by which rows of splits are compared.

    Attributes:
        columns: Columns in which rows must be equal.
        missing: Whether missing values equal each other; otherwise rows with one are ignored.
    """

    columns: tuple[str, ...]
    missing: bool = False


@dataclass
class SharedRows:
    """Number of rows of a split that are in another one, and example pairs of row numbers."""

    rows: int = 0
    examples: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class TimeOverlap:
    """Overlap of two splits in time.

    Attributes:
        late: Rows of the earlier split after `first`.
        early: Rows of the later split before `last`.
        first: First time of the later split.
        last: Last time of the earlier split.
    """

    late: int
    early: int
    first: Any
    last: Any


def shared_rows(
    tables: Mapping[str, Table], comparisons: Sequence[RowComparison]
) -> dict[tuple[int, str, str], SharedRows]:
    """Rows of a split that are in another one, by comparison and ordered pair of splits.

    Each block sends its distinct keys, as two hashes of 64 bits, to the task of their range.

    Args:
        tables: The splits.
        comparisons: Comparisons of the rows.
    """
    names = list(tables)
    rows = sum(len(table) for table in tables.values()) * len(comparisons)
    bits = min(6, max(0, (rows // _ENTRIES_A_TASK).bit_length()))
    task = value_task("leaks_hash_rows", returns=1 << bits)
    parts = [
        task.remote(entries, block, first, tuple(comparisons), number, bits)
        for number, table in enumerate(tables.values())
        for block, first in numbered(table)
    ]
    sent = [[refs] for refs in parts] if bits == 0 else parts
    find = value_task("leaks_compare_rows")
    overlaps = results(
        [find.remote(_compare, *[refs[n] for refs in sent]) for n in range(1 << bits)]
    )
    shared: dict[tuple[int, str, str], SharedRows] = {}
    for overlap in overlaps:
        for (comparison, a, b), part in overlap.items():
            total = shared.setdefault((comparison, names[a], names[b]), SharedRows())
            total.rows += part.rows
            total.examples = sorted(
                total.examples + part.examples, key=lambda pair: (pair[1], pair[0])
            )[:_EXAMPLES]
    return shared


def time_overlaps(tables: Mapping[str, Table], column: str) -> dict[tuple[str, str], TimeOverlap]:
    """Overlaps of pairs of splits of which the earlier one ends after the later one starts."""
    calls = {name: each_block(table, "leaks_time") for name, table in tables.items() if len(table)}
    key = functools.partial(time_key, column=column)
    spans = {name: count_groups(call, key)[0] for name, call in calls.items()}
    kind, names = next(iter(tables.values())).schema.field(column).type, list(calls)
    overlaps = {}
    for number, earlier in enumerate(names):
        for later in names[number + 1 :]:
            first, last = spans[later].low, spans[earlier].high
            if first < last:
                overlaps[earlier, later] = TimeOverlap(
                    sum(calls[earlier](_beyond, column, first, True)),
                    sum(calls[later](_beyond, column, last, False)),
                    value_of(first, kind),
                    value_of(last, kind),
                )
    return overlaps


def _beyond(block: pa.Table, first: int, column: str, limit: int, after: bool) -> int:
    keys = time_key(block, first, column)
    return int((keys > np.uint64(limit) if after else keys < np.uint64(limit)).sum())


def entries(
    block: pa.Table, first: int, comparisons: Sequence[RowComparison], split: int, bits: int
) -> Any:
    """Distinct keys of a block, in `2**bits` ranges of their first hash."""
    parts = []
    for number, comparison in enumerate(comparisons):
        high, low = (hash_rows(block, comparison.columns, seed) for seed in (0, 1))
        rows = np.arange(first, first + len(block))
        if not comparison.missing:
            present = np.ones(len(block), bool)
            for name in comparison.columns:
                present &= block[name].is_valid().to_numpy()
            high, low, rows = high[present], low[present], rows[present]
        order = np.argsort(high, kind="stable")
        high, low = high[order], low[order]
        # Equal first hashes with unequal second ones give extra entries, which are merged later.
        starts = np.flatnonzero(_changes(high, low))
        part = np.empty(len(starts), _ENTRY)
        part["high"], part["low"], part["row"] = high[starts], low[starts], rows[order][starts]
        part["rows"] = np.diff(np.append(starts, len(high)))
        part["comparison"], part["split"] = number, split
        parts.append(part)
    if bits == 0:
        return np.concatenate(parts)
    bounds = np.arange(1, 1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    pieces = [np.split(part, np.searchsorted(part["high"], bounds)) for part in parts]
    return [np.concatenate(piece) for piece in zip(*pieces, strict=True)]


def _compare(*parts: np.ndarray) -> dict[tuple[int, int, int], SharedRows]:
    """Shared rows by (comparison, first split, second split)."""
    sent = np.concatenate(parts)
    order = np.argsort(sent["high"])
    same = np.zeros(len(sent), bool)
    same[1:] = sent["high"][order[1:]] == sent["high"][order[:-1]]
    same[:-1] |= same[1:]
    some = sent[order[same]]  # most keys are in one split: only the remaining ones are sorted
    some = some[
        np.lexsort((some["row"], some["split"], some["low"], some["high"], some["comparison"]))
    ]
    shared: dict[tuple[int, int, int], SharedRows] = {}
    if not len(some):
        return shared
    changes = _changes(some["comparison"], some["high"], some["low"])
    starts, run = np.flatnonzero(changes), np.cumsum(changes) - 1
    splits = sorted(set(some["split"].tolist()))
    firsts = {}  # first row of each run by split, or -1
    for split in splits:
        inside = np.flatnonzero(some["split"] == split)[::-1]
        firsts[split] = np.full(len(starts), -1)
        firsts[split][run[inside]] = some["row"][inside]
    for a in splits:
        for b in splits:
            if a == b:
                continue
            mine = some[(some["split"] == b) & (firsts[a][run] >= 0)]
            for comparison in np.unique(mine["comparison"]).tolist():
                rows = int(mine["rows"][mine["comparison"] == comparison].sum())
                both = (
                    (firsts[a] >= 0) & (firsts[b] >= 0) & (some["comparison"][starts] == comparison)
                )
                pairs = np.stack([firsts[a][both], firsts[b][both]], axis=1)
                pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))[:_EXAMPLES]]
                shared[comparison, a, b] = SharedRows(rows, [(int(x), int(y)) for x, y in pairs])
    return shared


def _changes(*columns: np.ndarray) -> np.ndarray:
    """Whether a row differs from the one before it, bool `(rows,)`; the first one does."""
    changes = np.ones(len(columns[0]), bool)
    if len(changes):
        changes[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return changes
