"""Exact sums, means and variances, so that no statistic depends on how rows lie in blocks."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

# A float64 is an integer times 2**-1127 when its 53 bits count as one.
_UNIT = 1 << 1127
# Sums of this many integers of 27 bits stay exact in the 53 bits of a float64.
_VALUES_AT_ONCE = 1 << 25
# The squares of larger values do not fit into a float64.
LARGEST = 1e150


def exact_sum(values: np.ndarray) -> int:
    """Sum of finite float64 `(n,)`, without rounding, in units of 2**-1127.

    The values' 53 bits are added up by exponent, in halves that cannot overflow.
    """
    total = 0
    for first in range(0, len(values), _VALUES_AT_ONCE):
        fraction, exponent = np.frexp(values[first : first + _VALUES_AT_ONCE])
        digits = (fraction * 2.0**53).astype(np.int64)
        shift = exponent.astype(np.int64) + 1074
        lowest = int(shift.min())
        shift -= lowest
        high = np.bincount(shift, weights=digits >> 27)
        low = np.bincount(shift, weights=digits & (2**27 - 1))
        for place in np.flatnonzero((high != 0) | (low != 0)):
            part = (int(high[place]) << 27) + int(low[place])
            total += part << (int(place) + lowest)
    return total


class Moments(NamedTuple):
    """Numbers of values and sums from which mean, variance and range of a column follow."""

    present: int
    missing: int
    total: int  # see `exact_sum`
    squares: int  # in the same unit
    low: float  # inf without a value
    high: float

    def mean(self) -> float:
        """Mean, correctly rounded; requires a value."""
        return float(Fraction(self.total, _UNIT * self.present))

    def variance(self) -> float:
        """Population variance, correctly rounded."""
        total = Fraction(self.total, _UNIT)
        return float((self.present * Fraction(self.squares, _UNIT) - total**2) / self.present**2)

    def filled(self, fill: float) -> Moments:
        """Moments with `fill` in place of the missing values."""
        if not self.missing:
            return self
        unit = moments(np.array([fill]))
        return Moments(
            self.present + self.missing, 0,
            self.total + self.missing * unit.total, self.squares + self.missing * unit.squares,
            min(self.low, fill), max(self.high, fill),
        )  # fmt: skip


def moments(values: np.ndarray, name: str = "") -> Moments:
    """Moments of float64 `(n,)`; values that are not finite count as missing."""
    finite = values[np.isfinite(values)]
    missing = len(values) - len(finite)
    if not len(finite):
        return Moments(0, missing, 0, 0, np.inf, -np.inf)
    low, high = float(finite.min()), float(finite.max())
    if max(-low, high) > LARGEST:
        raise DataError(
            f"{name}: {low if -low > high else high!r} is beyond {LARGEST:g}, too large for "
            "statistics: clear or correct such values first"
        )
    # The square as a sum of two floats without rounding (Dekker, "A floating-point technique for
    # extending the available precision", 1971, procedure mul12).
    square = finite * finite
    split = finite * (2.0**27 + 1)
    head = split - (split - finite)
    tail = finite - head
    error = ((head * head - square) + 2 * head * tail) + tail * tail
    squares = exact_sum(square) + exact_sum(error)
    return Moments(len(finite), missing, exact_sum(finite), squares, low, high)


def merge_moments(parts: Iterable[Moments]) -> Moments:
    """The moments of all rows."""
    present, missing, total, squares, low, high = zip(*parts, strict=True)
    return Moments(sum(present), sum(missing), sum(total), sum(squares), min(low), max(high))
