"""Rows that stand in several splits, found by exchanging hashes between tasks."""

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

# Of a key in a block: its two hashes, which key it is, in which split, how often, where first.
_ENTRY = np.dtype(
    [("high", "u8"), ("low", "u8"), ("what", "u2"), ("split", "u2"), ("rows", "i8"), ("row", "i8")]
)
_ENTRIES_A_TASK = 2_000_000
_EXAMPLES = 3


@dataclass(frozen=True)
class Compared:
    """Columns by which rows of splits are compared.

    Attributes:
        columns: Rows are the same if they are equal in all of these.
        missing: Whether a missing value is one like others; rows with one are left out if not.
    """

    columns: tuple[str, ...]
    missing: bool = False


@dataclass
class Shared:
    """What two splits share: rows of the second, and (row of the first, row of the second)."""

    rows: int = 0
    examples: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Disorder:
    """Rows of two splits that lie in time where the other is.

    Attributes:
        late: Rows of the earlier split after the first of the later one, at `first`.
        early: Rows of the later split before the last of the earlier one, at `last`.
    """

    late: int
    early: int
    first: Any
    last: Any


def shared_rows(
    tables: Mapping[str, Table], compared: Sequence[Compared]
) -> dict[tuple[int, str, str], Shared]:
    """For each comparison and ordered pair of splits, rows of the second that are in the first.

    Each block sends its distinct keys, as two hashes of 64 bits, to the task of their range.

    Args:
        tables: The splits.
        compared: By what they are compared.
    """
    names = list(tables)
    rows = sum(len(table) for table in tables.values()) * len(compared)
    bits = min(6, max(0, (rows // _ENTRIES_A_TASK).bit_length()))
    task = value_task("leaks_hash_rows", returns=1 << bits)
    made = [
        task.remote(entries, block, first, tuple(compared), number, bits)
        for number, table in enumerate(tables.values())
        for block, first in numbered(table)
    ]
    sent = [[refs] for refs in made] if bits == 0 else made
    find = value_task("leaks_compare_rows")
    parts = results([find.remote(_found, *[refs[n] for refs in sent]) for n in range(1 << bits)])
    shared: dict[tuple[int, str, str], Shared] = {}
    for part in parts:
        for (what, a, b), found in part.items():
            whole = shared.setdefault((what, names[a], names[b]), Shared())
            whole.rows += found.rows
            whole.examples = sorted(
                whole.examples + found.examples, key=lambda pair: (pair[1], pair[0])
            )[:_EXAMPLES]
    return shared


def disorder(tables: Mapping[str, Table], column: str) -> dict[tuple[str, str], Disorder]:
    """Pairs of splits of which the earlier one does not end before the later one starts."""
    each = {name: each_block(table, "leaks_time") for name, table in tables.items() if len(table)}
    key = functools.partial(time_key, column=column)
    spans = {name: count_groups(call, key)[0] for name, call in each.items()}
    kind, names = next(iter(tables.values())).schema.field(column).type, list(each)
    found = {}
    for number, earlier in enumerate(names):
        for later in names[number + 1 :]:
            first, last = spans[later].low, spans[earlier].high
            if first < last:
                found[earlier, later] = Disorder(
                    sum(each[earlier](_beyond, column, first, True)),
                    sum(each[later](_beyond, column, last, False)),
                    value_of(first, kind),
                    value_of(last, kind),
                )
    return found


def _beyond(block: pa.Table, first: int, column: str, limit: int, after: bool) -> int:
    keys = time_key(block, first, column)
    return int((keys > np.uint64(limit) if after else keys < np.uint64(limit)).sum())


def entries(
    block: pa.Table, first: int, compared: Sequence[Compared], split: int, bits: int
) -> Any:
    """The distinct keys of a block, dealt out to `2**bits` ranges of their first hash."""
    made = []
    for what, one in enumerate(compared):
        high, low = (hash_rows(block, one.columns, seed) for seed in (0, 1))
        rows = np.arange(first, first + len(block))
        if not one.missing:
            there = _there(block, one.columns)
            high, low, rows = high[there], low[there], rows[there]
        order = np.argsort(high, kind="stable")
        high, low = high[order], low[order]
        # Equal first hashes with unequal second ones make entries too many, which are merged.
        starts = np.flatnonzero(_changes(high, low))
        part = np.empty(len(starts), _ENTRY)
        part["high"], part["low"], part["row"] = high[starts], low[starts], rows[order][starts]
        part["rows"] = np.diff(np.append(starts, len(high)))
        part["what"], part["split"] = what, split
        made.append(part)
    if bits == 0:
        return np.concatenate(made)
    bounds = np.arange(1, 1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    pieces = [np.split(part, np.searchsorted(part["high"], bounds)) for part in made]
    return [np.concatenate(piece) for piece in zip(*pieces, strict=True)]


def _found(*parts: np.ndarray) -> dict[tuple[int, int, int], Shared]:
    """What pairs of splits share, by (comparison, first split, second split)."""
    sent = np.concatenate(parts)
    order = np.argsort(sent["high"])
    same = np.zeros(len(sent), bool)
    same[1:] = sent["high"][order[1:]] == sent["high"][order[:-1]]
    same[:-1] |= same[1:]
    some = sent[order[same]]  # most keys stand in one split: only the others are sorted in full
    some = some[np.lexsort((some["row"], some["split"], some["low"], some["high"], some["what"]))]
    shared: dict[tuple[int, int, int], Shared] = {}
    if not len(some):
        return shared
    changes = _changes(some["what"], some["high"], some["low"])
    starts, run = np.flatnonzero(changes), np.cumsum(changes) - 1
    splits = sorted(set(some["split"].tolist()))
    firsts = {}  # of each run, the first row in each split, or -1
    for split in splits:
        inside = np.flatnonzero(some["split"] == split)[::-1]
        firsts[split] = np.full(len(starts), -1)
        firsts[split][run[inside]] = some["row"][inside]
    for a in splits:
        for b in splits:
            if a == b:
                continue
            mine = some[(some["split"] == b) & (firsts[a][run] >= 0)]
            for what in np.unique(mine["what"]).tolist():
                rows = int(mine["rows"][mine["what"] == what].sum())
                both = (firsts[a] >= 0) & (firsts[b] >= 0) & (some["what"][starts] == what)
                pairs = np.stack([firsts[a][both], firsts[b][both]], axis=1)
                pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))[:_EXAMPLES]]
                shared[what, a, b] = Shared(rows, [(int(x), int(y)) for x, y in pairs])
    return shared


def _there(block: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """Whether a row has a value in each of the columns, bool `(rows,)`."""
    there = np.ones(len(block), bool)
    for name in columns:
        there &= block[name].is_valid().to_numpy()
    return there


def _changes(*columns: np.ndarray) -> np.ndarray:
    """Whether a row differs from the one before it, bool `(rows,)`; the first one does."""
    changes = np.ones(len(columns[0]), bool)
    if len(changes):
        changes[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return changes
