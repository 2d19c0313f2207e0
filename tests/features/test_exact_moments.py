from fractions import Fraction
from statistics import pvariance

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import DataError
from raysys.features import Binned
from raysys.features import _exact_moments as _exact
from tests.features.local import fit

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
    moments = _exact.moments(np.array([*values, np.nan]))
    fractions = [Fraction(value) for value in values]
    assert (moments.present, moments.missing) == (len(values), 1)
    assert moments.mean() == float(sum(fractions) / len(values))
    assert moments.variance() == float(pvariance(fractions))
    assert (moments.low, moments.high) == (min(values), max(values))


def test_the_variance_of_values_far_from_zero_is_precise() -> None:
    values = 1.7e9 + np.random.default_rng(0).normal(size=10_000)
    assert _exact.moments(values).variance() == pytest.approx(np.var(values - 1.7e9), rel=1e-12)


def test_a_value_too_large_for_statistics_names_its_column() -> None:
    with pytest.raises(DataError, match=r"price: -1e\+200 is beyond 1e\+150"):
        _exact.moments(np.array([1.0, -1e200]), "price")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.floats(allow_infinity=False, width=64).filter(lambda v: not abs(v) > 1e140),
        min_size=1,
        max_size=40,
    ),
    st.integers(0, 40),
)
def test_quantile_edges_equal_numpy(values: list[float], cut: int) -> None:
    column, steps = np.array(values), np.linspace(0, 1, 9)
    fitted = fit({"x": column}, Binned(["x"], n_bins=8), cuts=(min(cut, len(values)),))
    edges = fitted.states[0][0]["edges"]
    present = column[~np.isnan(column)]
    if not len(present):
        assert not len(edges)
        return
    expected = np.unique(np.quantile(present, steps))[1:-1]
    np.testing.assert_allclose(edges, expected, rtol=1e-12, atol=1e-300)
