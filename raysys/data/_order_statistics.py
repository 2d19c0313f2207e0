"""Exact order statistics over blocks, by counting: no row and few keys leave a block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data._row_hash import hash_rows
from raysys.errors import DataError
from raysys.imports import lazy_import

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.data._row_numbers import Each

pd = lazy_import("pandas")

# Maps (block, number of its first row) to a key for each row, uint64 `(rows,)`.
Key = Callable[[pa.Table, int], np.ndarray]
# Maps the same to groups, keys and row numbers: uint64, uint64 and int64 `(n,)`, piece by piece;
# keys of one group come with its number.
_Piece = tuple[np.ndarray | int, np.ndarray, np.ndarray]
_GroupedKeys = Callable[[pa.Table, int], Iterator[_Piece]]

_MAX_NUMBERS = 1 << 17  # that the driver takes from all blocks together in one round
_LAST_ROW = np.iinfo(np.int64).max
_SIGN = 1 << 63


@dataclass(frozen=True)
class Group:
    """Number of rows, smallest and largest key of the rows that are equal in some columns."""

    rows: int
    low: int
    high: int


@dataclass(frozen=True)
class RankedKey:
    """The key of a rank within a group.

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


# --- keys ---


def ordered(column: Any, name: str) -> np.ndarray:
    """An Arrow array of numbers or times as uint64 that sort as they do.

    Raises:
        DataError: A value is missing, or of a type without such an order.
    """
    kind = column.type
    if missing := column.null_count:
        raise DataError(
            f"{name}: {missing} rows of a block have no value, so they cannot be ordered. Fill "
            "them or leave these rows out"
        )
    if pa.types.is_floating(kind):
        numbers = pc.cast(column, pa.float64()).to_numpy()
        if np.isnan(numbers).any():
            raise DataError(f"{name}: contains NaN, which cannot be ordered. Leave it out")
        return _float_keys(numbers)
    if pa.types.is_unsigned_integer(kind):
        return pc.cast(column, pa.uint64()).to_numpy()
    if not (pa.types.is_integer(kind) or pa.types.is_temporal(kind)):
        raise DataError(
            f"{name}: rows are ordered by numbers or times, not by {kind}. Read it as one of them"
        )
    if pa.types.is_date32(kind) or pa.types.is_time32(kind):
        column = pc.cast(column, pa.int32())
    return pc.cast(column, pa.int64()).to_numpy().view(np.uint64) ^ np.uint64(_SIGN)


def value_of(key: int, kind: Any) -> Any:
    """The number or time of an Arrow type for which `ordered` gives this key."""
    if pa.types.is_floating(kind):
        bits = key ^ _SIGN if key & _SIGN else key ^ (2**64 - 1)
        return float(np.uint64(bits).view(np.float64))
    if pa.types.is_unsigned_integer(kind):
        return key
    plain = pa.array([key - _SIGN], pa.int64())
    return plain.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind)[0].as_py()


def _float_keys(values: np.ndarray) -> np.ndarray:
    bits = (values + 0.0).view(np.uint64)  # -0.0 becomes 0.0
    return np.where(bits & np.uint64(_SIGN), ~bits, bits | np.uint64(_SIGN))


def groups_of(block: pa.Table, by: Sequence[str]) -> np.ndarray:
    """The group of each row, uint64 `(rows,)`: rows equal in `by` are of one group."""
    return hash_rows(block, by) if by else np.zeros(len(block), np.uint64)


# --- ranks ---


def count_groups(each: Each, key: Key, by: Sequence[str] = ()) -> dict[int, Group]:
    """The groups of all blocks, in the order of their hashes."""
    return _count_groups(each, functools.partial(_row_keys, key=key, by=by))


def locate(
    each: Each,
    key: Key,
    ranks: Sequence[tuple[int, int]],
    groups: Mapping[int, Group],
    by: Sequence[str] = (),
) -> list[RankedKey]:
    """The keys at some ranks of groups.

    Each round counts the keys of a narrowing range in up to 4096 bins, until the keys that are
    left are few enough to be fetched: three or four passes, whatever the number of rows.

    `ranks` are pairs of a group and a rank in it, from 1; `groups` is the result of `count_groups`.
    """
    return _locate(each, functools.partial(_row_keys, key=key, by=by), ranks, groups)


def quantiles(
    gather: Callable[..., Sequence[Any]],
    values: Callable[[pa.Table, str], np.ndarray],
    levels: Mapping[str, Sequence[float]],
) -> dict[str, np.ndarray]:
    """Exact quantiles of columns, linear between two ranks as in `numpy.quantile`.

    Args:
        gather: Calls `function(block, *args)` for each block, see `Table.gather`.
        values: Maps (block, column) to float64 `(n,)`; a value that is not finite is missing.
        levels: The quantiles of each column, from 0 to 1.

    Returns:
        float64 for each column, as many as its levels; NaN for a column without a value.
    """
    finite = functools.partial(_finite, values=values)
    keys = functools.partial(_column_keys, columns=list(levels), values=finite)
    groups = _count_groups(functools.partial(gather, _from_first_row), keys) if levels else {}
    places = {
        name: (groups[number].rows - 1) * np.asarray(levels[name], np.float64)
        for number, name in enumerate(levels)
        if number in groups
    }
    ranks = {
        name: np.concatenate([np.floor(place), np.ceil(place)]).astype(int).tolist()
        for name, place in places.items()
    }
    kinds = dict.fromkeys(ranks, pa.float64())
    ends = values_at_ranks(gather, finite, ranks, kinds)
    result = {name: np.full(len(column), np.nan) for name, column in levels.items()}
    for name, place in places.items():
        low, high = np.reshape(ends[name], (2, -1))
        result[name] = low + (high - low) * (place - np.floor(place))
    return result


def values_at_ranks(
    gather: Callable[..., Sequence[Any]],
    values: Callable[[pa.Table, str], np.ndarray],
    ranks: Mapping[str, Sequence[int]],
    kinds: Mapping[str, Any],
) -> dict[str, list[Any]]:
    """Values of given ranks, from 0, in the order of each column's values.

    `values` maps (block, column) to its values `(n,)` without missing ones, which are of the
    Arrow types `kinds`: int64, uint64 or float64. On `gather` see `Table.gather`.
    """
    keys = functools.partial(_column_keys, columns=list(ranks), values=values)
    pairs = [(n, rank + 1) for n, column in enumerate(ranks.values()) for rank in column]
    each = functools.partial(gather, _from_first_row)
    located = iter(_locate(each, keys, pairs, _count_groups(each, keys)) if pairs else [])
    return {
        name: [value_of(next(located).key, kinds[name]) for _ in column]
        for name, column in ranks.items()
    }


def _finite(
    block: pa.Table, name: str, values: Callable[[pa.Table, str], np.ndarray]
) -> np.ndarray:
    column = values(block, name)
    return column[np.isfinite(column)]


def _row_keys(block: pa.Table, first: int, key: Key, by: Sequence[str]) -> Iterator[_Piece]:
    groups = groups_of(block, by) if by else 0
    yield groups, key(block, first), np.arange(first, first + len(block))


def _column_keys(
    block: pa.Table, _: int, columns: Sequence[str], values: Callable[[pa.Table, str], np.ndarray]
) -> Iterator[_Piece]:
    """Keys of each column; a column's number is its group."""
    for number, name in enumerate(columns):
        keys = ordered(pa.array(values(block, name)), name)
        yield number, keys, np.zeros(len(keys), np.int64)


def _from_first_row(block: pa.Table, function: Callable[..., Any], *args: Any) -> Any:
    return function(block, 0, *args)


def _count_groups(each: Each, grouped: _GroupedKeys) -> dict[int, Group]:
    groups: dict[int, Group] = {}
    for part in each(_count, grouped):
        for group, rows, low, high in zip(*(column.tolist() for column in part), strict=True):
            old = groups.get(group, Group(0, low, high))
            groups[group] = Group(old.rows + rows, min(old.low, low), max(old.high, high))
    return dict(sorted(groups.items()))


def _locate(
    each: Each, grouped: _GroupedKeys, ranks: Sequence[tuple[int, int]], groups: Mapping[int, Group]
) -> list[RankedKey]:
    if not ranks:
        return []
    about = [groups[group] for group, _ in ranks]
    group = np.array([group for group, _ in ranks], np.uint64)
    low = np.array([one.low for one in about], np.uint64)
    high = np.array([one.high for one in about], np.uint64)
    left = np.array([rank for _, rank in ranks])  # the rank among the keys of the range
    inside = np.array([one.rows for one in about])
    below = np.zeros(len(left), np.int64)
    rows = np.full(len(left), _LAST_ROW)
    wide = np.flatnonzero(low < high)
    ranges, at = _Ranges.distinct(group[wide], low[wide], high[wide])
    while len(wide) and _count_of_ranges(inside[wide], at) > _MAX_NUMBERS:
        bits = max(1, min(12, (_MAX_NUMBERS // len(ranges.low)).bit_length() - 1))
        counts = functools.reduce(np.add, each(_histogram, grouped, ranges, bits))[at]
        upto = np.cumsum(counts, axis=1)
        bins = (upto < left[wide, None]).sum(axis=1)
        before = upto[np.arange(len(wide)), bins] - counts[np.arange(len(wide)), bins]
        left[wide] -= before
        below[wide] += before
        inside[wide] = counts[np.arange(len(wide)), bins]
        low[wide], high[wide] = ranges.bin(at, bins.astype(np.uint64), bits)
        wide = wide[low[wide] < high[wide]]
        ranges, at = _Ranges.distinct(group[wide], low[wide], high[wide])
    upto = below + inside
    if len(wide):
        parts = list(each(_inside, grouped, ranges))
        which, keys, numbers = (np.concatenate([part[n] for part in parts]) for n in range(3))
        order = np.lexsort((numbers, keys, which))
        which, keys, numbers = which[order], keys[order], numbers[order]
        starts = np.searchsorted(which, at)
        places = starts + left[wide] - 1
        low[wide], rows[wide] = keys[places], numbers[places]
        equal = np.array([_run(which, keys, place) for place in places.tolist()])
        upto[wide] = below[wide] + equal[:, 1] - starts
        below[wide] += equal[:, 0] - starts
    columns = (low, rows, below, upto)
    return [RankedKey(*values) for values in zip(*(c.tolist() for c in columns), strict=True)]


def _count_of_ranges(inside: np.ndarray, at: np.ndarray) -> int:
    """Keys in all ranges, each range counted once."""
    return int(inside[np.unique(at, return_index=True)[1]].sum())


@dataclass
class _Ranges:
    """Disjoint ranges of keys, both ends inside, each in a group: uint64 `(ranges,)`.

    Ascending by group, then by keys.
    """

    group: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def distinct(
        cls, group: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[_Ranges, np.ndarray]:
        """The ranges, and for each input the number of its range."""
        rows, at = np.unique(np.stack([group, low, high], axis=1), axis=0, return_inverse=True)
        return cls(*np.ascontiguousarray(rows.T)), at.reshape(-1)

    def shift(self, bits: int) -> np.ndarray:
        """Bits by which a distance from `low` is shifted to number at most `2**bits` bins."""
        lengths = np.frexp((self.high - self.low).astype(np.float64))[1]  # rounded up at most
        return np.maximum(lengths - bits, 0).astype(np.uint64)

    def bin(self, at: np.ndarray, bins: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
        """The ends of some bins of the ranges `at`."""
        shift = self.shift(bits)[at]
        low = self.low[at] + (bins << shift)
        width = (np.uint64(1) << shift) - np.uint64(1)
        return low, low + np.minimum(width, self.high[at] - low)

    def find(self, groups: np.ndarray | int, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The places of keys that are in a range, and the numbers of these ranges."""
        if isinstance(groups, int):
            first, last = np.searchsorted(self.group, [groups, groups + 1])
            if first == last:
                return np.zeros(0, np.int64), np.zeros(0, np.int64)
            which: Any = first
            if last - first > 1:
                ahead = np.searchsorted(self.low[first:last], keys, side="right")
                which = first + np.maximum(ahead - 1, 0)
            places = np.flatnonzero((keys >= self.low[which]) & (keys <= self.high[which]))
            return places, np.broadcast_to(which, keys.shape)[places]
        names, starts, sizes = np.unique(self.group, return_index=True, return_counts=True)
        mine = np.minimum(np.searchsorted(names, groups), len(names) - 1)
        which = starts[mine]
        ends = which + sizes[mine]
        step = 1 << (int(sizes.max()).bit_length() - 1)
        while step and sizes.max() > 1:  # binary search for the last range that starts by the key
            ahead = np.minimum(which + step, len(self.low) - 1)
            go = (which + step < ends) & (self.low[ahead] <= keys)
            which = np.where(go, ahead, which)
            step >>= 1
        inside = (names[mine] == groups) & (keys >= self.low[which]) & (keys <= self.high[which])
        places = np.flatnonzero(inside)
        return places, which[places]


def _run(which: np.ndarray, keys: np.ndarray, at: int) -> tuple[int, int]:
    """The first and one past the last entry of a range that have the key at `at`."""
    start = end = at
    while start and which[start - 1] == which[at] and keys[start - 1] == keys[at]:
        start -= 1
    while end < len(keys) and which[end] == which[at] and keys[end] == keys[at]:
        end += 1
    return start, end


def _count(block: pa.Table, first: int, grouped: _GroupedKeys) -> tuple[np.ndarray, ...]:
    """Groups of a block: hashes, numbers of rows, smallest and largest keys."""
    counts = []
    for groups, keys, _ in grouped(block, first):
        if not len(keys):
            continue
        if isinstance(groups, int):
            one = np.array([[groups], [len(keys)], [keys.min()], [keys.max()]], np.uint64)
            counts.append(tuple(one))
            continue
        codes, names = pd.factorize(groups)
        low = np.full(len(names), 2**64 - 1, np.uint64)
        high = np.zeros(len(names), np.uint64)
        np.minimum.at(low, codes, keys)
        np.maximum.at(high, codes, keys)
        counts.append((names, np.bincount(codes).astype(np.uint64), low, high))
    if not counts:
        return (np.zeros(0, np.uint64),) * 4
    return tuple(np.concatenate(column) for column in zip(*counts, strict=True))


def _histogram(
    block: pa.Table, first: int, grouped: _GroupedKeys, ranges: _Ranges, bits: int
) -> np.ndarray:
    """Numbers of keys in the bins of each range, int64 `(ranges, 2**bits)`."""
    counts, shift = np.zeros(len(ranges.low) << bits, np.int64), ranges.shift(bits)
    for groups, keys, _ in grouped(block, first):
        places, which = ranges.find(groups, keys)
        bins = (keys[places] - ranges.low[which]) >> shift[which]
        counts += np.bincount((which << bits) + bins.astype(np.int64), minlength=len(counts))
    return counts.reshape(-1, 1 << bits)


def _inside(
    block: pa.Table, first: int, grouped: _GroupedKeys, ranges: _Ranges
) -> tuple[np.ndarray, ...]:
    """Ranges, keys and row numbers of the keys in the ranges."""
    pieces = []
    for groups, keys, numbers in grouped(block, first):
        places, which = ranges.find(groups, keys)
        pieces.append((which, keys[places], numbers[places]))
    return tuple(np.concatenate(column) for column in zip(*pieces, strict=True))
