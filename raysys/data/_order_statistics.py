"""The k-th smallest key over all blocks, found by counting: no row and few keys leave a block."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data._row_hash import hash_rows
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from raysys.data._row_numbers import Each

    # Of (block, number of its first row), a key for each row: uint64 `(rows,)`.
    Key = Callable[[pa.Table, int], np.ndarray]

# As many numbers as the driver takes from all blocks together in one round.
_MOST = 1 << 17
_LAST_ROW = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Group:
    """Number of rows, smallest and largest key of the rows that are equal in some columns."""

    rows: int
    low: int
    high: int


@dataclass(frozen=True)
class Place:
    """Where the key of one rank was found.

    Attributes:
        key: The key.
        row: Number of the row that has it at this rank, rows with equal keys in their order.
        below: Rows of the group with smaller keys.
        upto: Rows of the group with keys up to this one.
    """

    key: int
    row: int
    below: int
    upto: int


def ordered(column: Any, name: str) -> np.ndarray:
    """Numbers or times as uint64 that sort as they do.

    Args:
        column: Arrow array of integers, floats, or times.
        name: The column's name, for errors.

    Raises:
        DataError: A value is missing, or of a type without such an order.
    """
    kind, sign = column.type, np.uint64(1 << 63)
    if missing := column.null_count:
        raise DataError(
            f"{name}: {missing} rows of a block have no value, so they have no place in its order. "
            "Fill them or leave these rows out"
        )
    if pa.types.is_floating(kind):
        numbers = pc.cast(column, pa.float64()).to_numpy()
        if np.isnan(numbers).any():
            raise DataError(f"{name}: holds NaN, which has no place in an order. Leave it out")
        bits = (numbers + 0.0).view(np.uint64)
        return np.where(bits & sign, ~bits, bits | sign)
    if pa.types.is_unsigned_integer(kind):
        return pc.cast(column, pa.uint64()).to_numpy() ^ np.uint64(0)
    if not (pa.types.is_integer(kind) or pa.types.is_temporal(kind)):
        raise DataError(
            f"{name}: rows are ordered by numbers or times, not by {kind}. Read it as one of them"
        )
    if pa.types.is_date32(kind) or pa.types.is_time32(kind):
        column = pc.cast(column, pa.int32())
    return pc.cast(column, pa.int64()).to_numpy().view(np.uint64) ^ sign


def value_of(key: int, kind: Any) -> Any:
    """The number or time whose place in the order `ordered` gives as this key."""
    if pa.types.is_floating(kind):
        bits = key ^ (1 << 63) if key >> 63 else key ^ (2**64 - 1)
        return float(np.array(bits, np.uint64).view(np.float64))
    if pa.types.is_unsigned_integer(kind):
        return key
    plain = pa.array([key - (1 << 63)], pa.int64())
    return plain.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind)[0].as_py()


def groups_of(block: pa.Table, by: Sequence[str]) -> np.ndarray:
    """The group of each row, uint64 `(rows,)`: rows equal in `by` are of one group."""
    return hash_rows(block, by) if by else np.zeros(len(block), np.uint64)


def count_groups(each: Each, key: Key, by: Sequence[str] = ()) -> dict[int, Group]:
    """The groups of all blocks, in the order of their hashes."""
    found: dict[int, Group] = {}
    for part in each(_count, key, by):
        for group, rows, low, high in zip(*(column.tolist() for column in part), strict=True):
            old = found.get(group, Group(0, low, high))
            found[group] = Group(old.rows + rows, min(old.low, low), max(old.high, high))
    return dict(sorted(found.items()))


def locate(
    each: Each,
    key: Key,
    wanted: Sequence[tuple[int, int]],
    groups: dict[int, Group],
    by: Sequence[str] = (),
) -> list[Place]:
    """Find keys by their rank in a group.

    Each round counts the keys of a narrowing range in up to 4096 bins, until the keys that are
    left are few enough to be looked at: three or four passes, whatever the number of rows.

    Args:
        each: Calls a function for each block.
        key: The rows' keys.
        wanted: Pairs of a group and a rank in it, from 1.
        groups: What `count_groups` found.
        by: Columns that make the groups.
    """
    if not wanted:
        return []
    about = [groups[group] for group, _ in wanted]
    ranges = _Ranges(
        np.array([group for group, _ in wanted], np.uint64),
        np.array([group.low for group in about], np.uint64),
        np.array([group.high for group in about], np.uint64),
    )
    left = np.array([rank for _, rank in wanted])  # the rank among those inside the range
    inside = np.array([group.rows for group in about])
    below = np.zeros(len(left), np.int64)
    wide = np.flatnonzero(ranges.low < ranges.high)
    while inside[wide].sum() > _MOST:
        bits = max(1, min(12, (_MOST // len(wide)).bit_length() - 1))
        some = ranges.take(wide)
        counts = functools.reduce(np.add, each(_histogram, key, by, some, bits))
        upto = np.cumsum(counts, axis=1)
        found = (upto < left[wide, None]).sum(axis=1)
        at = np.arange(len(wide)), found
        left[wide] -= upto[at] - counts[at]
        below[wide] += upto[at] - counts[at]
        inside[wide] = counts[at]
        ranges.narrow(wide, found.astype(np.uint64), some.shift(bits))
        wide = wide[ranges.low[wide] < ranges.high[wide]]
    rows = np.full(len(left), _LAST_ROW)
    upto = below + inside
    if len(wide):
        parts = list(each(_inside, key, by, ranges.take(wide)))
        which, keys, numbers = (np.concatenate([part[n] for part in parts]) for n in range(3))
        order = np.lexsort((numbers, keys, which))
        which, keys, numbers = which[order], keys[order], numbers[order]
        starts = np.searchsorted(which, np.arange(len(wide)))
        at = starts + left[wide] - 1
        ranges.low[wide], rows[wide] = keys[at], numbers[at]
        same = [_run(which, keys, one) for one in at.tolist()]
        upto[wide] = below[wide] + np.array([end for _, end in same]) - starts
        below[wide] += np.array([start for start, _ in same]) - starts
    columns = (ranges.low, rows, below, upto)
    return [Place(*one) for one in zip(*(column.tolist() for column in columns), strict=True)]


@dataclass
class _Ranges:
    """Ranges of keys, both ends inside, each in a group: uint64 `(ranges,)`."""

    group: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def take(self, which: np.ndarray) -> _Ranges:
        return _Ranges(self.group[which], self.low[which], self.high[which])

    def shift(self, bits: int) -> np.ndarray:
        """By how many bits a distance from `low` is shifted to number at most `2**bits` bins."""
        lengths = np.frexp((self.high - self.low).astype(np.float64))[1]  # rounded up at most
        return np.maximum(lengths - bits, 0).astype(np.uint64)

    def narrow(self, which: np.ndarray, bins: np.ndarray, shift: np.ndarray) -> None:
        low = self.low[which] + (bins << shift)
        width = (np.uint64(1) << shift) - np.uint64(1)
        self.high[which] = low + np.minimum(width, self.high[which] - low)
        self.low[which] = low

    def of(self, groups: np.ndarray, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of rows and the ranges that they are in; several where ranges share a group."""
        names, at = np.unique(self.group, return_inverse=True)
        order = np.argsort(at, kind="stable")
        layer = np.empty(len(at), np.int64)  # which range of its group a range is
        layer[order] = np.arange(len(at)) - np.searchsorted(at[order], at[order])
        mine = np.minimum(np.searchsorted(names, groups), len(names) - 1)
        known = names[mine] == groups
        for number in range(int(layer.max()) + 1):
            slots = np.full(len(names), -1)
            slots[at[layer == number]] = np.flatnonzero(layer == number)
            which = slots[mine]
            low, high = self.low[which], self.high[which]
            rows = np.flatnonzero(known & (which >= 0) & (keys >= low) & (keys <= high))
            yield rows, which[rows]


def _run(which: np.ndarray, keys: np.ndarray, at: int) -> tuple[int, int]:
    """The first and one past the last entry of one range that have the key at `at`."""
    start = end = at
    while start and which[start - 1] == which[at] and keys[start - 1] == keys[at]:
        start -= 1
    while end < len(keys) and which[end] == which[at] and keys[end] == keys[at]:
        end += 1
    return start, end


def _count(block: pa.Table, first: int, key: Key, by: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Of the groups in a block: hashes, numbers of rows, smallest and largest keys."""
    import pandas as pd

    keys = key(block, first)
    codes, groups = pd.factorize(groups_of(block, by))
    low = np.full(len(groups), 2**64 - 1, np.uint64)
    high = np.zeros(len(groups), np.uint64)
    np.minimum.at(low, codes, keys)
    np.maximum.at(high, codes, keys)
    return groups, np.bincount(codes, minlength=len(groups)), low, high


def _histogram(
    block: pa.Table, first: int, key: Key, by: Sequence[str], ranges: _Ranges, bits: int
) -> np.ndarray:
    """Numbers of keys in the bins of each range, int64 `(ranges, 2**bits)`."""
    counts = np.zeros(len(ranges.low) << bits, np.int64)
    keys, shift = key(block, first), ranges.shift(bits)
    for rows, which in ranges.of(groups_of(block, by), keys):
        bins = (keys[rows] - ranges.low[which]) >> shift[which]
        counts += np.bincount((which << bits) + bins.astype(np.int64), minlength=len(counts))
    return counts.reshape(-1, 1 << bits)


def _inside(
    block: pa.Table, first: int, key: Key, by: Sequence[str], ranges: _Ranges
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranges, keys and row numbers of the rows in the ranges."""
    keys = key(block, first)
    pairs = list(ranges.of(groups_of(block, by), keys))
    rows, which = (np.concatenate([pair[n] for pair in pairs]) for n in (0, 1))
    return which, keys[rows], rows + first
