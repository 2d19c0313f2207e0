"""Expectation maximisation over patterns of votes.

The latent-class model of Dawid & Skene, "Maximum likelihood estimation of observer error-rates
using the EM algorithm" (1979): a row has an unseen class y, and labelers answer independently
given it. The likelihood depends on the rows through the counts of the patterns alone, so a round
costs as much as there are patterns, whatever the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["accuracies", "confusions"]
# What a labeler is taken to be before its votes are compared: right in 7 of 10, worth one row.
_START, _WORTH = 0.7, 1.0
_MOST_ROUNDS, _TOLERANCE = 2000, 1e-7


@dataclass(frozen=True)
class Estimate:
    """What EM found.

    Attributes:
        balance: float64 `(classes,)`, the share of each class.
        answers: float64 `(labelers, classes, classes + 1)`: of a labeler and a true class, the
            likelihood of silence, then of a vote for each class.
        rounds: How many it took.
        converged: Whether it came to rest.
    """

    balance: np.ndarray
    answers: np.ndarray
    rounds: int
    converged: bool


def estimate(
    votes: np.ndarray, rows: np.ndarray, kind: Kind, classes: int, balance: np.ndarray | None
) -> Estimate:
    """Fit the model.

    Args:
        votes: int8 `(patterns, labelers)`, -1 where silent.
        rows: int64 `(patterns,)`, rows of each pattern.
        kind: "accuracies" gives a labeler one: how often it is right where it votes, errors
            falling on all other classes alike and silence saying nothing (Ratner et al., "Data
            programming", 2016, with one coin for each labeler). "confusions" gives it a
            distribution over silence and votes for each true class.
        classes: How many.
        balance: The shares of the classes if they are known.
    """
    import scipy.sparse

    count, labelers = votes.shape
    at = (np.arange(labelers) * (classes + 1) + votes.astype(np.int64) + 1).ravel()
    ends = np.arange(0, count * labelers + 1, labelers)
    # One row a pattern, with a 1 for each answer: both steps are a product with it.
    given = scipy.sparse.csr_array(
        (np.ones(len(at)), at, ends), shape=(count, labelers * (classes + 1))
    )
    known = balance is not None
    shares = np.full(classes, 1 / classes) if balance is None else balance
    answers = one_coin(np.full(labelers, _START), classes)
    number, moved = 0, np.inf
    while moved >= _TOLERANCE and number < _MOST_ROUNDS:
        number += 1
        weights = posterior(given @ _flat(answers), shares) * rows[:, None]
        counts = (given.T @ weights).reshape(labelers, classes + 1, classes).transpose(0, 2, 1)
        before, shares_before = answers, shares
        answers = _accuracies(counts) if kind == "accuracies" else _confusions(counts)
        if not known:
            shares = (weights.sum(axis=0) + 1) / (rows.sum() + classes)
        moved = max(np.abs(answers - before).max(), np.abs(shares - shares_before).max())
    return Estimate(shares, np.ascontiguousarray(answers), number, bool(moved < _TOLERANCE))


def probabilities(votes: np.ndarray, balance: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Of each row of votes the probability of each class, float64 `(rows, classes)`."""
    logs = np.zeros((len(votes), len(balance)))
    for column, answer in zip(votes.T, np.log(answers), strict=True):
        logs += answer.T[column.astype(np.int64) + 1]
    return posterior(logs, balance)


def posterior(logs: np.ndarray, balance: np.ndarray) -> np.ndarray:
    """Bayes' rule: log-likelihoods `(rows, classes)` and prior shares to probabilities."""
    logs = logs + np.log(balance)
    made = np.exp(logs - logs.max(axis=1, keepdims=True))
    return made / made.sum(axis=1, keepdims=True)


def one_coin(accuracies: np.ndarray, classes: int) -> np.ndarray:
    """Answers of labelers that are right this often where they vote, see `Estimate`."""
    right = np.eye(classes)[None]
    accuracy = accuracies[:, None, None]
    voted = right * accuracy + (1 - right) * (1 - accuracy) / (classes - 1)
    return np.concatenate([np.ones((len(accuracies), classes, 1)), voted], axis=2)


def _flat(answers: np.ndarray) -> np.ndarray:
    return np.log(answers).transpose(0, 2, 1).reshape(-1, answers.shape[1])


def _accuracies(counts: np.ndarray) -> np.ndarray:
    """Answers from expected counts `(labelers, true class, answer)`."""
    voted = counts[:, :, 1:]
    right = np.trace(voted, axis1=1, axis2=2)
    accuracies = (right + _START * _WORTH) / (voted.sum(axis=(1, 2)) + _WORTH)
    return one_coin(accuracies, counts.shape[1])


def _confusions(counts: np.ndarray) -> np.ndarray:
    smoothed = counts + _WORTH / counts.shape[2]
    return smoothed / smoothed.sum(axis=2, keepdims=True)
