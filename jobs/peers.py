"""Baselines of the recommender: popularity, and ALS of the package implicit."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from jobs.film_etl import TEST, VALIDATION
from jobs.two_tower import favourites
from raysys.evaluate import ndcg, recall, top_k

if TYPE_CHECKING:
    from scipy import sparse

    from raysys.data import Table

Metrics = dict[str, float]
_FACTORS, _REGULARIZATION, _ALPHA = (16, 32, 64), (0.1, 1.0, 10.0), (1.0, 5.0, 20.0)
_ITERATIONS = 15


def compare_peers(ratings: Table, films: Table) -> dict[str, Metrics]:
    """Metrics of both baselines on the test set, tuned on the validation set.

    All films except a person's earlier favourites are ranked, as for the recommender. ALS: Hu,
    Koren & Volinsky, "Collaborative Filtering for Implicit Feedback Datasets" (2008).
    """
    person, film, part = favourites(ratings.to_arrow(), films.to_arrow())
    people, person = np.unique(person, return_inverse=True)
    shape = (len(people), len(films))

    def measure(scores: np.ndarray, cut: int) -> Metrics:
        tested = np.unique(person[part == cut])
        relevant = np.stack([film[(person == user) & (part == cut)] for user in tested])
        scores = scores[tested]
        for row, user in enumerate(tested):
            scores[row, film[(person == user) & (part < cut)]] = -np.inf
        ranked = top_k(scores, 20)
        return {
            "ndcg_at_10": float(ndcg(ranked, relevant, 10).mean()),
            "recall_at_20": float(recall(ranked, relevant, 20).mean()),
        }

    def matrix(cut: int) -> sparse.csr_matrix:
        from scipy import sparse

        before = part < cut
        ones = np.ones(int(before.sum()), np.float32)
        return sparse.csr_matrix((ones, (person[before], film[before])), shape)

    counts = np.asarray(matrix(TEST).sum(axis=0))
    popularity = measure(np.repeat(counts, len(people), axis=0), TEST)
    grid = itertools.product(_FACTORS, _REGULARIZATION, _ALPHA)
    best = max(grid, key=lambda s: measure(_als(matrix(VALIDATION), *s), VALIDATION)["ndcg_at_10"])
    return {"popularity": popularity, "tuned ALS": measure(_als(matrix(TEST), *best), TEST)}


def _als(
    chosen: sparse.csr_matrix, factors: int, regularization: float, alpha: float
) -> np.ndarray:
    from implicit.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=factors,
            regularization=regularization,
            alpha=alpha,
            iterations=_ITERATIONS,
            random_state=0,
        )
        model.fit(chosen, show_progress=False)
    return model.user_factors @ model.item_factors.T
