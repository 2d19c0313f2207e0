from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.data import quantiles


def _quantiles(values: np.ndarray, levels: Any, *cuts: int) -> np.ndarray:
    blocks = [pa.table({"x": part, "empty": part * np.nan}) for part in np.split(values, cuts)]
    result = quantiles(
        lambda function, *args: [function(block, *args) for block in blocks],
        lambda block, name: block[name].to_numpy(),
        {"empty": [0.5], "x": levels},
    )
    assert np.isnan(result["empty"]).all()
    return result["x"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.floats(allow_infinity=False, width=64).filter(lambda v: not abs(v) > 1e300),
        min_size=1,
        max_size=40,
    ),
    st.integers(0, 40),
)
def test_quantiles_equal_those_of_numpy(values: list[float], cut: int) -> None:
    column, levels = np.array(values), [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]
    result, finite = _quantiles(column, levels, cut), column[~np.isnan(column)]
    if not len(finite):
        assert np.isnan(result).all()
        return
    np.testing.assert_allclose(result, np.quantile(finite, levels), rtol=1e-12, atol=1e-300)
    assert (result[0], result[-1]) == (finite.min(), finite.max())


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_quantiles_of_many_values_are_narrowed_in_rounds(scale: float) -> None:
    values, levels = np.random.default_rng(0).normal(5, scale, 300_000), np.linspace(0, 1, 21)
    result = _quantiles(values, levels, 1, 100_000)
    np.testing.assert_allclose(result, np.quantile(values, levels), rtol=1e-15)
