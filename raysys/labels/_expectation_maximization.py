"""Expectation maximisation over patterns of votes.

The latent-class model of Dawid & Skene, "Maximum likelihood estimation of observer error-rates
using the EM algorithm" (1979): a row has a latent class y, and labelers vote independently
given it. The likelihood depends on the rows only through the counts of the vote patterns, so the
cost of an iteration depends on the number of patterns, not of rows.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from raysys.imports import lazy_import

sparse = lazy_import("scipy.sparse")

Kind = Literal["accuracies", "confusions"]
# Prior of a labeler: an accuracy of 0.7, with the weight of one row.
_PRIOR_ACCURACY, _PRIOR_WEIGHT = 0.7, 1.0
_MAX_ITER, _TOLERANCE = 2000, 1e-7


def estimate(
    votes: np.ndarray, rows: np.ndarray, kind: Kind, classes: int, balance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """Balance, vote probabilities, iterations and convergence, as in `FittedLabelModel`.

    Estimated from votes and rows as in `VotePatterns`; with a `balance` the shares of the classes
    are known. Kind "accuracies": one accuracy a labeler, with errors uniform over the other classes
    and uninformative abstentions (Ratner et al., "Data programming", 2016). "confusions": a
    distribution over abstaining and votes for each true class.
    """
    count, labelers = votes.shape
    columns = (np.arange(labelers) * (classes + 1) + votes.astype(np.int64) + 1).ravel()
    ends = np.arange(0, count * labelers + 1, labelers)
    # One row a pattern, with a 1 for each vote or abstention: both steps are products with it.
    indicators = sparse.csr_array(
        (np.ones(len(columns)), columns, ends), shape=(count, labelers * (classes + 1))
    )
    shares = np.full(classes, 1 / classes) if balance is None else balance
    likelihoods = symmetric_errors(np.full(labelers, _PRIOR_ACCURACY), classes)
    n_iter, change = 0, np.inf
    while change >= _TOLERANCE and n_iter < _MAX_ITER:
        n_iter += 1
        logs = np.log(likelihoods).transpose(0, 2, 1).reshape(-1, classes)
        weights = posterior(indicators @ logs, shares) * rows[:, None]
        counts = (indicators.T @ weights).reshape(labelers, classes + 1, classes).transpose(0, 2, 1)
        previous, previous_shares = likelihoods, shares
        likelihoods = _accuracies(counts) if kind == "accuracies" else _confusions(counts)
        if balance is None:
            shares = (weights.sum(axis=0) + 1) / (rows.sum() + classes)
        change = max(np.abs(likelihoods - previous).max(), np.abs(shares - previous_shares).max())
    return shares, np.ascontiguousarray(likelihoods), n_iter, bool(change < _TOLERANCE)


def probabilities(
    votes: np.ndarray, balance: np.ndarray, vote_probabilities: np.ndarray
) -> np.ndarray:
    """Probability of each class given a row's votes, float64 `(rows, classes)`."""
    logs = np.zeros((len(votes), len(balance)))
    for column, labeler in zip(votes.T, np.log(vote_probabilities), strict=True):
        logs += labeler.T[column.astype(np.int64) + 1]
    return posterior(logs, balance)


def posterior(logs: np.ndarray, balance: np.ndarray) -> np.ndarray:
    """Bayes' rule: log-likelihoods `(rows, classes)` and prior shares to probabilities."""
    logs = logs + np.log(balance)
    joint = np.exp(logs - logs.max(axis=1, keepdims=True))
    return joint / joint.sum(axis=1, keepdims=True)


def symmetric_errors(accuracies: np.ndarray, classes: int) -> np.ndarray:
    """Vote probabilities of labelers with these accuracies, as in `FittedLabelModel`."""
    right = np.eye(classes)[None]
    accuracy = accuracies[:, None, None]
    voted = right * accuracy + (1 - right) * (1 - accuracy) / (classes - 1)
    return np.concatenate([np.ones((len(accuracies), classes, 1)), voted], axis=2)


def _accuracies(counts: np.ndarray) -> np.ndarray:
    """Vote probabilities from expected counts `(labelers, true class, abstention or vote)`."""
    voted = counts[:, :, 1:]
    right = np.trace(voted, axis1=1, axis2=2)
    right += _PRIOR_ACCURACY * _PRIOR_WEIGHT
    return symmetric_errors(right / (voted.sum(axis=(1, 2)) + _PRIOR_WEIGHT), counts.shape[1])


def _confusions(counts: np.ndarray) -> np.ndarray:
    smoothed = counts + _PRIOR_WEIGHT / counts.shape[2]
    return smoothed / smoothed.sum(axis=2, keepdims=True)
