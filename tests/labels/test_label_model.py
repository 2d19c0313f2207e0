import json
import math

import numpy as np
import pyarrow as pa
import pytest

from raysys.errors import DataError
from raysys.labels import FittedLabelModel, LabelModel
from raysys.labels._label_model import predict_block, score_patterns
from raysys.labels._labeler_report import report_of
from tests.labels.example_votes import all_classes, majority, one_sided, patterns

ACCURACIES = [0.9, 0.75, 0.7, 0.65, 0.6, 0.55]
RATES = [
    (1, 0.3, 0.02),
    (1, 0.2, 0.05),
    (1, 0.5, 0.2),
    (0, 0.4, 0.1),
    (0, 0.2, 0.05),
    (0, 0.6, 0.4),
]


def _classes(rows: int, shares: list[float], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(shares), rows, p=shares)


def _predicted(votes: np.ndarray, fitted: FittedLabelModel) -> pa.Table:
    columns = [pa.array(column, mask=column < 0) for column in votes.T]
    return predict_block(pa.table(columns, names=list(fitted.labelers)), fitted)


@pytest.mark.parametrize("kind", ["accuracies", "confusions"])
@pytest.mark.parametrize("shares", [[0.7, 0.3], [0.6, 0.3, 0.1]])
def test_accuracies_are_recovered_and_labels_beat_a_majority_vote(
    kind: str, shares: list[float]
) -> None:
    y = _classes(20_000, shares)
    votes = all_classes(y, ACCURACIES, len(shares), 0.6, seed=1)
    fitted = LabelModel(len(shares), kind=kind).fit_patterns(patterns(votes))  # type: ignore[arg-type]
    assert fitted.converged
    np.testing.assert_allclose(list(fitted.accuracies.values()), ACCURACIES, atol=0.025)
    np.testing.assert_allclose(fitted.balance, shares, atol=0.03)
    predicted = _predicted(votes, fitted)
    covered = (votes >= 0).any(axis=1)
    right = (predicted["label"].to_numpy() == y)[covered].mean()
    assert right > (majority(votes, len(shares)) == y)[covered].mean() + 0.05


def test_labelers_of_one_class_match_the_bayes_classifier() -> None:
    y = _classes(20_000, [0.7, 0.3])
    votes = one_sided(y, RATES, seed=2)
    fitted = LabelModel(2).fit_patterns(patterns(votes))
    predicted = _predicted(votes, fitted)["label"].to_numpy()
    covered = (votes >= 0).any(axis=1)
    rates = np.array([[(votes[y == c] == v).mean(axis=0) for v in (-1, 0, 1)] for c in (0, 1)])
    logs = np.log(np.array([0.7, 0.3])) + np.array(
        [
            [sum(math.log(rates[c, v + 1, n]) for n, v in enumerate(row)) for c in (0, 1)]
            for row in votes[:4000].tolist()
        ]
    )
    best = (logs.argmax(axis=1) == y[:4000])[covered[:4000]].mean()
    assert (predicted[:4000] == y[:4000])[covered[:4000]].mean() == pytest.approx(best, abs=0.01)
    assert (predicted == y)[covered].mean() > (majority(votes, 2) == y)[covered].mean() + 0.015
    with pytest.raises(DataError, match="labeler_0 votes for class 1 only"):
        LabelModel(2, kind="accuracies").fit_patterns(patterns(votes))


def _em_row_by_row(votes: np.ndarray, rounds: int) -> tuple[list[float], list[float]]:
    """Shares and accuracies of two classes, by EM as in the paper, with the prior row."""
    shares, right = [0.5, 0.5], [0.7] * votes.shape[1]
    for _ in range(rounds):
        posteriors = []
        for row in votes.tolist():
            joint = [
                shares[c]
                * math.prod(
                    1 if v < 0 else right[j] if v == c else 1 - right[j] for j, v in enumerate(row)
                )
                for c in (0, 1)
            ]
            posteriors.append([p / sum(joint) for p in joint])
        for j in range(votes.shape[1]):
            voted = [
                (p, v) for p, v in zip(posteriors, votes[:, j].tolist(), strict=True) if v >= 0
            ]
            right[j] = (sum(p[v] for p, v in voted) + 0.7) / (len(voted) + 1)
        shares = [(sum(p[c] for p in posteriors) + 1) / (len(posteriors) + 2) for c in (0, 1)]
    return shares, right


def test_em_on_patterns_matches_em_on_rows() -> None:
    y = _classes(300, [0.6, 0.4])
    votes = all_classes(y, [0.9, 0.8, 0.7, 0.6], 2, 0.8, seed=3)
    votes = votes[(votes >= 0).any(axis=1)]
    fitted = LabelModel(2, kind="accuracies").fit_patterns(patterns(votes))
    shares, right = _em_row_by_row(votes, 400)
    np.testing.assert_allclose(fitted.balance, shares, atol=1e-5)
    np.testing.assert_allclose(list(fitted.accuracies.values()), right, atol=1e-5)


def test_predictions_follow_bayes_rule() -> None:
    vote_probabilities = np.array(
        [[[0.5, 0.4, 0.1], [0.2, 0.2, 0.6]], [[0.1, 0.6, 0.3], [0.1, 0.3, 0.6]]]
    )
    fitted = FittedLabelModel(("a", "b"), np.array([0.8, 0.2]), vote_probabilities, 1, True)
    block = pa.table(
        {"a": pa.array([1, None, None], pa.int8()), "b": pa.array([0, 1, None], pa.int8())}
    )
    predicted = predict_block(block, fitted)
    first = 0.8 * 0.1 * 0.6, 0.2 * 0.6 * 0.3
    second = 0.8 * 0.5 * 0.3, 0.2 * 0.2 * 0.6
    silent = 0.8 * 0.5 * 0.1, 0.2 * 0.2 * 0.1
    expected = [pair[1] / sum(pair) for pair in (first, second, silent)]
    np.testing.assert_allclose(predicted["probability_1"].to_numpy(), expected)
    np.testing.assert_allclose(predicted["probability_0"].to_numpy(), 1 - np.array(expected))
    assert predicted["label"].to_pylist() == [0, 0, None]
    assert predicted.schema.field("label").type == pa.int8()


def test_ties_have_no_label() -> None:
    coin = [[1.0, 0.7, 0.3], [1.0, 0.3, 0.7]]
    fitted = FittedLabelModel(("a", "b"), np.array([0.5, 0.5]), np.array([coin, coin]), 1, True)
    predicted = _predicted(np.array([[0, 1], [1, 0], [1, 1]], np.int8), fitted)
    assert predicted["label"].to_pylist() == [None, None, 1]


def test_a_given_balance_is_not_estimated() -> None:
    votes = all_classes(_classes(500, [0.5, 0.5]), [0.8, 0.7, 0.7], 2, 1.0, seed=4)
    fitted = LabelModel(2, balance=(0.9, 0.1)).fit_patterns(patterns(votes))
    assert fitted.balance.tolist() == [0.9, 0.1]


def test_the_score_compares_with_a_majority_vote() -> None:
    y = _classes(400, [0.7, 0.3])
    votes = all_classes(y, ACCURACIES, 2, 0.4, seed=5)
    gold = np.where(np.arange(400) % 3 == 0, y, -1)
    counted = patterns(votes, gold)
    fitted = LabelModel(2).fit_patterns(counted)
    score = score_patterns(counted, fitted)
    scored = (gold >= 0) & (votes >= 0).any(axis=1)
    label = _predicted(votes, fitted)["label"].to_numpy()
    assert score.rows == scored.sum()
    assert score.label_model == pytest.approx((label == y)[scored].mean())
    guesses = np.mean([(majority(votes, 2, seed) == y)[scored].mean() for seed in range(200)])
    assert score.majority_vote == pytest.approx(guesses, abs=0.01)
    with pytest.raises(DataError, match="no row with a vote has a gold label"):
        score_patterns(patterns(votes), fitted)


def test_the_state_is_json() -> None:
    votes = all_classes(_classes(500, [0.5, 0.5]), [0.8, 0.7, 0.7], 2, 0.7, seed=6)
    fitted = LabelModel(2).fit_patterns(patterns(votes))
    state = json.loads(json.dumps(fitted.state()))
    again = FittedLabelModel.from_state(state)
    assert _predicted(votes, again).equals(_predicted(votes, fitted))
    assert again.accuracies == fitted.accuracies
    with pytest.raises(DataError, match="format 7"):
        FittedLabelModel.from_state({**state, "format": 7})


def test_invalid_label_models_are_refused() -> None:
    for wrong, message in (
        ({"classes": 1}, "classes=1"),
        ({"classes": 2, "kind": "x"}, "kind='x'"),
        ({"classes": 2, "balance": (0.5, 0.6)}, "balance="),
        ({"classes": 2, "balance": (1.0, 0.0)}, "balance="),
    ):
        with pytest.raises(DataError, match=message):
            LabelModel(**wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"labeler_1 votes for class 2, .* use classes=3"):
        LabelModel(2).fit_patterns(patterns(np.array([[0, 2], [1, 1]], np.int8)))
    with pytest.raises(DataError, match="votes on any row"):
        LabelModel(2).fit_patterns(patterns(np.full((3, 2), -1, np.int8)))


def test_an_empty_block_has_no_labels() -> None:
    votes = all_classes(_classes(50, [0.5, 0.5]), [0.8, 0.7, 0.7], 2, 0.7, seed=7)
    fitted = LabelModel(2).fit_patterns(patterns(votes))
    assert _predicted(votes[:0], fitted).schema == _predicted(votes, fitted).schema
    assert report_of(patterns(votes[:0])).coverage == 0
