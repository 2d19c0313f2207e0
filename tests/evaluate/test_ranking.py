from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from raysys.evaluate import ndcg, recall, top_k

RANKED = np.array([[5, 3, 9, 1], [5, 3, 9, 1], [5, 3, 9, 1]])
RELEVANT = np.array([[3, 1, 8], [5, -1, -1], [-1, -1, -1]])  # Hits at 2 and 4, at 1, none relevant.


def test_ndcg_by_hand() -> None:
    two_hits = 1 / np.log2(3) + 1 / np.log2(5)
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    np.testing.assert_allclose(ndcg(RANKED, RELEVANT, 4), [two_hits / ideal, 1, 0])


def test_ndcg_is_one_when_the_first_k_are_all_relevant() -> None:
    relevant = np.array([[9, 5, 3]])
    np.testing.assert_allclose(ndcg(RANKED[:1], relevant, 2), [1])


def test_recall_by_hand() -> None:
    np.testing.assert_allclose(recall(RANKED, RELEVANT, 4), [2 / 3, 1, 0])
    np.testing.assert_allclose(recall(RANKED, RELEVANT, 2), [1 / 3, 1, 0])


@pytest.mark.parametrize("k", [1, 5, 40])
def test_ndcg_equals_that_of_scikit_learn(k: int) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random((50, 40)), rng.random((50, 40)) < 0.1
    assert labels.sum(axis=1).min() == 0, "a row without anything relevant belongs to the test"
    ranked = np.argsort(-scores, axis=1)
    relevant = np.where(labels, np.arange(40), -1)
    assert ndcg(ranked, relevant, k).mean() == pytest.approx(ndcg_score(labels, scores, k=k))


@pytest.mark.parametrize("measure", [ndcg, recall])
def test_padding_of_a_short_ranking_is_never_a_hit(measure: Callable[..., np.ndarray]) -> None:
    padded, relevant = np.array([[3, -1, -1]]), np.array([[3, 4, -1]])
    filled = np.array([[3, 7, 8]])
    assert measure(padded, relevant, 3) == measure(filled, relevant, 3) < 1


@pytest.mark.parametrize("measure", [ndcg, recall])
def test_a_cutoff_beyond_the_ranking_is_refused(measure: Callable[..., np.ndarray]) -> None:
    with pytest.raises(ValueError, match="4 ranked ids per row are too few for a cutoff of 5"):
        measure(RANKED, RELEVANT, 5)


@pytest.mark.parametrize("k", [0, 1, 7, 30, 99])
def test_top_k_equals_a_full_sort(k: int) -> None:
    scores = np.random.default_rng(0).normal(size=(20, 30))
    np.testing.assert_array_equal(top_k(scores, k), np.argsort(-scores, axis=1)[:, :k])


def test_top_k_takes_scores_that_rule_columns_out() -> None:
    scores = np.array([[-np.inf, 2.0, -np.inf, 3.0]])
    np.testing.assert_array_equal(top_k(scores, 2), [[3, 1]])
