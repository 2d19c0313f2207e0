import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, roc_auc_score

from raysys.errors import DataError
from raysys.evaluate import binary_measures, calibration_error

RNG = np.random.default_rng(0)
PROBABILITIES = RNG.random(5000)
LABELS = (RNG.random(5000) < PROBABILITIES**2).astype(int)


def test_calibration_error_by_hand() -> None:
    labels, probabilities = np.array([0, 1, 1, 0, 1]), np.array([0.1, 0.3, 0.9, 0.8, 1.0])
    # Two bins: 2 rows at 0.2 of which half are positive, 3 rows at 0.9 of which two thirds are.
    expected = 2 / 5 * (0.5 - 0.2) + 3 / 5 * (0.9 - 2 / 3)
    assert calibration_error(labels, probabilities, bins=2) == pytest.approx(expected)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_that_of_scikit_learns_curve(bins: int) -> None:
    shares, means = calibration_curve(LABELS, PROBABILITIES, n_bins=bins)
    weights = np.histogram(PROBABILITIES, np.linspace(0, 1, bins + 1))[0] / len(PROBABILITIES)
    expected = (np.abs(shares - means) * weights[weights > 0]).sum()
    assert calibration_error(LABELS, PROBABILITIES, bins) == pytest.approx(expected)
    assert expected > 0.1


def test_calibrated_probabilities_have_almost_no_error() -> None:
    labels = (RNG.random(5000) < PROBABILITIES).astype(int)
    assert calibration_error(labels, PROBABILITIES) < 0.03
    assert calibration_error(labels, labels.astype(float)) == 0


def test_measures_are_those_of_scikit_learn() -> None:
    assert binary_measures(LABELS, PROBABILITIES) == {
        "auc": roc_auc_score(LABELS, PROBABILITIES),
        "average_precision": average_precision_score(LABELS, PROBABILITIES),
        "calibration_error": calibration_error(LABELS, PROBABILITIES),
    }


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [0.0, 1.3], "probabilities from 0 to 1.3: give values from 0 to 1"),
        ([0, 1], [-2.0, 3.0], "probabilities from -2 to 3"),
        ([0, 1], [0.1, np.nan], "1 of 2 probabilities are missing or not finite"),
        ([0, 2], [0.1, 0.2], "labels such as 2"),
        (["no", "yes"], [0.1, 0.2], "labels are not numbers"),
        ([0, 1, 1], [0.1, 0.2], "3 labels and 2 probabilities"),
        ([1, 1], [0.1, 0.2], "all 2 labels are 1"),
        ([0, 1], [[0.9, 0.1], [0.2, 0.8]], r"probabilities of shape \(2, 2\)"),
    ],
)
def test_what_is_no_probability_or_label_is_refused(
    labels: list[object], probabilities: list[object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        binary_measures(np.array(labels), np.array(probabilities))
