from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics

from raysys.errors import DataError
from raysys.evaluate import binary_measures, calibration_error, regression_measures

RNG = np.random.default_rng(0)
TARGETS = RNG.gamma(2.0, size=400)
PREDICTIONS = TARGETS + RNG.normal(size=400)
WEIGHTS = RNG.integers(0, 4, 400)


def test_measures_by_hand() -> None:
    measures = regression_measures([1.0, 2.0, 4.0], [2.0, 2.0, 2.0], alpha=0.9)
    assert measures["mean_squared_error"] == pytest.approx(5 / 3)
    assert measures["root_mean_squared_error"] == pytest.approx((5 / 3) ** 0.5)
    assert measures["mean_absolute_error"] == 1.0
    assert measures["median_absolute_error"] == 1.0
    assert measures["max_error"] == 2.0
    assert measures["r2_score"] == pytest.approx(1 - 5 / (16 / 9 + 1 / 9 + 25 / 9))
    # One above by 1 costs a tenth of it, one below by 2 costs nine tenths.
    assert measures["mean_pinball_loss"] == pytest.approx((0.1 * 1 + 0.9 * 2) / 3)


def test_a_weight_counts_as_repeated_rows() -> None:
    weighted = regression_measures(TARGETS, PREDICTIONS, sample_weight=WEIGHTS, alpha=0.3)
    repeated = regression_measures(TARGETS.repeat(WEIGHTS), PREDICTIONS.repeat(WEIGHTS), alpha=0.3)
    assert weighted == pytest.approx(repeated)
    plain = regression_measures(TARGETS, PREDICTIONS, alpha=0.3)
    assert all(weighted[name] != plain[name] for name in plain if name != "max_error")
    assert plain["r2_score"] == metrics.r2_score(TARGETS, PREDICTIONS)


def test_weights_of_probabilities_count_as_repeated_rows() -> None:
    probabilities = RNG.random(400)
    labels = (RNG.random(400) < probabilities**2).astype(int)
    weighted = binary_measures(labels, probabilities, sample_weight=WEIGHTS)
    repeated = labels.repeat(WEIGHTS), probabilities.repeat(WEIGHTS)
    assert weighted == pytest.approx(binary_measures(*repeated))
    assert weighted["calibration_error"] != calibration_error(labels, probabilities)


def test_columns_of_a_table_and_of_a_module_are_taken() -> None:
    table = pa.table({"y": pa.chunked_array([TARGETS[:100], TARGETS[100:]])})
    expected = regression_measures(TARGETS, PREDICTIONS)
    assert regression_measures(table["y"], PREDICTIONS[:, None]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [1.0]), "2 targets and 1 predictions"),
        (([], []), r"targets of shape \(0,\)"),
        (([1.0, np.nan], [1.0, 2.0]), "1 of 2 targets are missing or not finite"),
        (([1.0, 2.0], [1.0, np.inf]), "1 of 2 predictions are missing"),
        (([1.0], ["one"]), "predictions are not numbers"),
        (([1.0], [[1.0, 2.0]]), r"predictions of shape \(1, 2\)"),
    ],
)
def test_unusable_values_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        regression_measures(*arguments)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [1.0]])
def test_unusable_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(DataError, match="sample_weight"):
        regression_measures([1.0, 2.0], [1.0, 2.0], sample_weight=weights)


def test_a_quantile_is_between_0_and_1() -> None:
    with pytest.raises(DataError, match="alpha=90"):
        regression_measures([1.0, 2.0], [1.0, 2.0], alpha=90)
