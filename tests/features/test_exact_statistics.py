from fractions import Fraction
from statistics import pvariance

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import DataError
from raysys.features import _exact_statistics as _exact

LARGE = st.floats(-1e140, 1e140).filter(lambda value: value == 0 or abs(value) > 1e-140)
_UNIT = Fraction(1, 2**1127)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=30))
def test_a_sum_has_no_rounding(values: list[float]) -> None:
    exact = sum((Fraction(value) for value in values), Fraction(0))
    assert _exact.exact_sum(np.array(values, np.float64)) * _UNIT == exact


@settings(max_examples=60, deadline=None)
@given(st.lists(LARGE, min_size=1, max_size=30))
def test_mean_and_variance_are_correctly_rounded(values: list[float]) -> None:
    found = _exact.moments(np.array([*values, np.nan]))
    fractions = [Fraction(value) for value in values]
    assert (found.known, found.missing) == (len(values), 1)
    assert found.mean() == float(sum(fractions) / len(values))
    assert found.variance() == float(pvariance(fractions))
    assert (found.low, found.high) == (min(values), max(values))


def test_the_variance_of_values_far_from_zero_is_kept() -> None:
    values = 1.7e9 + np.random.default_rng(0).normal(size=10_000)
    assert _exact.moments(values).variance() == pytest.approx(np.var(values - 1.7e9), rel=1e-12)


def test_a_value_too_large_for_statistics_names_its_column() -> None:
    with pytest.raises(DataError, match=r"price: -1e\+200 is beyond 1e\+150"):
        _exact.moments(np.array([1.0, -1e200]), "price")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.floats(allow_infinity=False, width=64).filter(lambda v: not abs(v) > 1e300),
        min_size=1,
        max_size=40,
    ),
    st.integers(0, 40),
)
def test_quantiles_are_those_of_numpy(values: list[float], cut: int) -> None:
    column, steps = np.array(values), [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]
    blocks = [column[:cut], column[cut:]]
    found = _exact.quantiles(
        {"x": steps},
        lambda prefixes, level: [
            {"x": _exact.bit_counts(block, prefixes["x"], level)} for block in blocks
        ],
    )["x"]
    known = column[~np.isnan(column)]
    if not len(known):
        assert np.isnan(found).all()
        return
    np.testing.assert_allclose(found, np.quantile(known, steps), rtol=1e-12, atol=1e-300)
    assert found[0] == known.min()
    assert found[-1] == known.max()
