"""The k-th smallest key over all blocks, found by counting: no row and few keys leave a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.data._hash import hash_rows
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from raysys.data._numbered import Each

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
    import pyarrow as pa
    import pyarrow.compute as pc

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
    import pyarrow as pa

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
        for group, rows, low, high in part:
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
    searches = [
        _Search(group, rank, groups[group].low, groups[group].high, 0, groups[group].rows)
        for group, rank in wanted
    ]
    wide = [search for search in searches if search.low < search.high]
    while wide and sum(search.inside for search in wide) > _MOST:
        bits = max(1, min(12, (_MOST // len(wide)).bit_length() - 1))
        parts = each(_histogram, key, by, [(s.group, s.low, s.high) for s in wide], bits)
        for search, counts in zip(wide, np.sum(parts, axis=0), strict=True):
            search.narrow(counts, bits)
        wide = [search for search in wide if search.low < search.high]
    parts = each(_inside, key, by, [(s.group, s.low, s.high) for s in wide]) if wide else []
    places = {
        id(search): search.pick(
            *(np.concatenate([part[number][n] for part in parts]) for n in (0, 1))
        )
        for number, search in enumerate(wide)
    }
    return [places.get(id(search)) or search.only() for search in searches]


@dataclass
class _Search:
    """The range of keys in which a rank lies, with the numbers of rows below and inside it."""

    group: int
    rank: int
    low: int
    high: int
    below: int
    inside: int

    def narrow(self, counts: np.ndarray, bits: int) -> None:
        shift = _shift(self.low, self.high, bits)
        upto = np.cumsum(counts)
        found = int(np.searchsorted(upto, self.rank - self.below))
        self.below += int(upto[found] - counts[found])
        self.inside = int(counts[found])
        self.low += found << shift
        self.high = min(self.high, self.low + (1 << shift) - 1)

    def pick(self, keys: np.ndarray, rows: np.ndarray) -> Place:
        order = np.lexsort((rows, keys))[self.rank - self.below - 1]
        key = keys[order]
        below = self.below + int((keys < key).sum())
        return Place(int(key), int(rows[order]), below, below + int((keys == key).sum()))

    def only(self) -> Place:
        return Place(self.low, _LAST_ROW, self.below, self.below + self.inside)


def _shift(low: int, high: int, bits: int) -> int:
    return max(0, (high - low).bit_length() - bits)


def _count(
    block: pa.Table, first: int, key: Key, by: Sequence[str]
) -> list[tuple[int, int, int, int]]:
    return [
        (group, len(keys), int(keys.min()), int(keys.max()))
        for group, (keys, _) in _grouped(block, first, key, by).items()
    ]


def _histogram(
    block: pa.Table,
    first: int,
    key: Key,
    by: Sequence[str],
    ranges: list[tuple[int, int, int]],
    bits: int,
) -> np.ndarray:
    """Numbers of keys in the bins of each range, int64 `(ranges, 2**bits)`."""
    grouped = _grouped(block, first, key, by)
    counts = np.zeros((len(ranges), 1 << bits), np.int64)
    for number, (group, low, high) in enumerate(ranges):
        if group in grouped:
            keys = grouped[group][0]
            keys = keys[(keys >= np.uint64(low)) & (keys <= np.uint64(high))]
            bins = (keys - np.uint64(low)) >> np.uint64(_shift(low, high, bits))
            counts[number] = np.bincount(bins.astype(np.int64), minlength=1 << bits)
    return counts


def _inside(
    block: pa.Table, first: int, key: Key, by: Sequence[str], ranges: list[tuple[int, int, int]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Keys in each range, and the numbers of their rows."""
    grouped, found = _grouped(block, first, key, by), []
    nothing = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    for group, low, high in ranges:
        keys, rows = grouped.get(group, nothing)
        inside = (keys >= np.uint64(low)) & (keys <= np.uint64(high))
        found.append((keys[inside], rows[inside]))
    return found


def _grouped(
    block: pa.Table, first: int, key: Key, by: Sequence[str]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Keys and row numbers of each group."""
    import pandas as pd

    if not len(block):
        return {}
    keys, rows = key(block, first), np.arange(first, first + len(block))
    if not by:
        return {0: (keys, rows)}
    codes, groups = pd.factorize(groups_of(block, by))
    order = np.argsort(codes.astype(np.int32), kind="stable")
    ends = np.cumsum(np.bincount(codes))[:-1]
    parts = zip(np.split(keys[order], ends), np.split(rows[order], ends), strict=True)
    return dict(zip(groups.tolist(), parts, strict=True))
