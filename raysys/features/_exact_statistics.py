"""Exact sums and quantiles, so that no statistic depends on how rows lie in blocks."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

# A float64 is an integer times 2**-1127 when its 53 bits count as one.
_UNIT = 1 << 1127
# So many sums of 27 bits stay exact in the 53 bits of a float64.
_AT_ONCE = 1 << 25
# The squares of larger values do not fit into a float64.
LARGEST = 1e150
# A quantile is found 16 bits at a time.
ROUNDS, _BITS = 4, 16


def exact_sum(values: np.ndarray) -> int:
    """The sum of finite float64 `(n,)`, without rounding, in units of 2**-1127.

    The values' 53 bits are added up by exponent, in halves that cannot overflow.
    """
    total = 0
    for first in range(0, len(values), _AT_ONCE):
        fraction, exponent = np.frexp(values[first : first + _AT_ONCE])
        whole = (fraction * 2.0**53).astype(np.int64)
        shift = exponent.astype(np.int64) + 1074
        lowest = int(shift.min())
        shift -= lowest
        high = np.bincount(shift, weights=whole >> 27)
        low = np.bincount(shift, weights=whole & (2**27 - 1))
        for place in np.flatnonzero((high != 0) | (low != 0)):
            part = (int(high[place]) << 27) + int(low[place])
            total += part << (int(place) + lowest)
    return total


class Moments(NamedTuple):
    """What the mean, the variance and the range of a column are made of; add to merge.

    Attributes:
        known: Values that are there.
        missing: Those that are not.
        total: Their sum, see `exact_sum`.
        squares: The sum of their squares, in the same unit.
        low: The smallest, infinite without one.
        high: The largest.
    """

    known: int
    missing: int
    total: int
    squares: int
    low: float
    high: float

    def mean(self) -> float:
        """Correctly rounded; there must be a value."""
        return float(Fraction(self.total, _UNIT * self.known))

    def variance(self) -> float:
        """Over the number of values, correctly rounded."""
        total = Fraction(self.total, _UNIT)
        return float((self.known * Fraction(self.squares, _UNIT) - total**2) / self.known**2)

    def filled(self, fill: float) -> Moments:
        """With `fill` in place of the missing values."""
        if not self.missing:
            return self
        one = moments(np.array([fill]))
        return Moments(
            self.known + self.missing, 0,
            self.total + self.missing * one.total, self.squares + self.missing * one.squares,
            min(self.low, fill), max(self.high, fill),
        )  # fmt: skip


def moments(values: np.ndarray, name: str = "") -> Moments:
    """Of float64 `(n,)`; what is not finite is missing.

    Raises:
        DataError: A value is too large to be squared.
    """
    there = values[np.isfinite(values)]
    missing = len(values) - len(there)
    if not len(there):
        return Moments(0, missing, 0, 0, np.inf, -np.inf)
    low, high = float(there.min()), float(there.max())
    if max(-low, high) > LARGEST:
        raise DataError(
            f"{name}: {low if -low > high else high!r} is beyond {LARGEST:g}, too large for "
            "statistics: clear or correct such values first"
        )
    # The square as a sum of two floats without rounding (Dekker, "A floating-point technique for
    # extending the available precision", 1971, procedure mul12).
    square = there * there
    split = there * (2.0**27 + 1)
    top = split - (split - there)
    rest = there - top
    error = ((top * top - square) + 2 * top * rest) + rest * rest
    squares = exact_sum(square) + exact_sum(error)
    return Moments(len(there), missing, exact_sum(there), squares, low, high)


def merged(parts: Iterable[Moments]) -> Moments:
    """The moments of all rows."""
    known, missing, total, squares, low, high = zip(*parts, strict=True)
    return Moments(sum(known), sum(missing), sum(total), sum(squares), min(low), max(high))


# --- quantiles ---


def bit_counts(values: np.ndarray, prefixes: Sequence[int], level: int) -> list[np.ndarray]:
    """How often each next 16 bits follow a prefix, among the finite values as ordered integers.

    Args:
        values: float64 `(n,)`.
        prefixes: The leading `16 * level` bits that are looked for.
        level: From 0 to 3.

    Returns:
        For each prefix, int64 `(2, k)`: the bits that occur, and their counts.
    """
    bits = values[np.isfinite(values)].view(np.uint64)
    sign = np.uint64(1 << 63)
    keys = np.where(bits & sign, ~bits, bits | sign)
    below = np.uint64(64 - _BITS * (level + 1))
    found = []
    leading = keys >> below
    for prefix in prefixes:
        inside = leading
        if level:
            inside = leading[leading >> np.uint64(_BITS) == np.uint64(prefix)]
        counts = np.bincount((inside & np.uint64(0xFFFF)).astype(np.int64))
        places = np.flatnonzero(counts)
        found.append(np.stack([places, counts[places]]))
    return found


def quantiles(
    wanted: Mapping[str, Sequence[float]],
    count: Callable[[dict[str, list[int]], int], list[dict[str, list[np.ndarray]]]],
) -> dict[str, np.ndarray]:
    """Quantiles of columns, exactly: the values at their ranks, and linear between two.

    A value is found by its rank, 16 bits in each of four passes over the data.

    Args:
        wanted: Of each column, which quantiles, from 0 to 1.
        count: Gives the `bit_counts` of all blocks, of each column's prefixes, at a level.

    Returns:
        The quantiles of each column; NaN for a column without a value.
    """
    prefixes = {name: [0] for name in wanted}
    ranks: dict[str, dict[int, tuple[int, int]]] = {}  # rank -> prefix, rank within it
    places: dict[str, np.ndarray] = {}
    for level in range(ROUNDS):
        parts = count(prefixes, level)
        for name, given in prefixes.items():
            tables = {
                prefix: _added([part[name][k] for part in parts]) for k, prefix in enumerate(given)
            }
            if level == 0:
                known = int(tables[0][1].sum())
                places[name] = (known - 1) * np.asarray(wanted[name])
                around = {int(end(place)) for place in places[name] for end in (np.floor, np.ceil)}
                ranks[name] = {rank: (0, rank) for rank in around} if known else {}
            for rank, (prefix, inside) in ranks[name].items():
                bits, counts = tables[prefix]
                ends = np.cumsum(counts)
                at = int(np.searchsorted(ends, inside, side="right"))
                before = int(ends[at] - counts[at])
                ranks[name][rank] = ((prefix << _BITS) | int(bits[at]), inside - before)
        prefixes = {name: sorted({p for p, _ in found.values()}) for name, found in ranks.items()}
    return {name: _between(places[name], ranks[name]) for name in wanted}


def _added(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    bits, place = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    counts = np.zeros(len(bits), np.int64)
    np.add.at(counts, place, np.concatenate([part[1] for part in parts]))
    return bits, counts


def _between(places: np.ndarray, ranks: dict[int, tuple[int, int]]) -> np.ndarray:
    if not ranks:
        return np.full(len(places), np.nan)
    sign = 1 << 63
    keys = {rank: key for rank, (key, _) in ranks.items()}
    bits = {rank: key ^ sign if key & sign else key ^ (2 * sign - 1) for rank, key in keys.items()}
    values = {rank: float(np.uint64(bit).view(np.float64)) for rank, bit in bits.items()}
    low = np.array([values[int(np.floor(place))] for place in places])
    high = np.array([values[int(np.ceil(place))] for place in places])
    return low + (high - low) * (places - np.floor(places))
