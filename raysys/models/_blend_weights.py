"""Weights of several models' answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

_TINY = 1e-15  # a chance of 0 would have an infinite loss


@dataclass(frozen=True)
class LogisticBlend:
    """One probability from the log-odds of several models, which it calibrates too.

    A logistic regression without a penalty (Platt, "Probabilistic outputs for support vector
    machines", 1999, for several of them).

    Attributes:
        weights: For each model's log-odds.
        bias: Added to their sum.
    """

    weights: tuple[float, ...]
    bias: float

    @classmethod
    def fit(cls, log_odds: np.ndarray, truth: np.ndarray) -> LogisticBlend:
        """Weigh log-odds `(n, models)` by what was true, `(n,)` of two values."""
        from sklearn.linear_model import LogisticRegression

        fitted = LogisticRegression(C=np.inf).fit(log_odds, truth)
        return cls(tuple(map(float, fitted.coef_[0])), float(fitted.intercept_[0]))

    def probability(self, log_odds: np.ndarray) -> np.ndarray:
        """Of the second of the two values: float64 `(n,)` from `(n, models)`."""
        return 1 / (1 + np.exp(-(log_odds.astype(np.float64) @ np.array(self.weights) + self.bias)))


def log_odds(probability: np.ndarray) -> np.ndarray:
    """float64, of the same shape."""
    inside = np.clip(probability.astype(np.float64), _TINY, 1 - _TINY)
    return np.log(inside) - np.log1p(-inside)


def convex_by_loss(chances: np.ndarray) -> np.ndarray:
    """Weights of a mixture with the least log loss.

    Args:
        chances: What each model gave to the class that was true: `(n, models)`.

    Returns:
        float64 `(models,)`, none negative, of sum 1. The loss is convex in them.
    """
    chances = np.maximum(chances.astype(np.float64), _TINY)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(chances @ weights, _TINY)
        return -float(np.log(mixed).mean()), -(chances / mixed[:, None]).mean(axis=0)

    return _on_simplex(loss, chances.shape[1])


def convex_by_squares(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Weights of a mean with the least squared error: see `convex_by_loss`.

    Args:
        values: What each model said: `(n, models)`.
        truth: What was true: `(n,)`.
    """
    errors = values.astype(np.float64) - truth[:, None].astype(
        np.float64
    )  # as the weights sum to 1
    products = errors.T @ errors / max(float((errors**2).sum()), np.finfo(float).tiny)
    return _on_simplex(
        lambda weights: (float(weights @ products @ weights), 2 * products @ weights),
        values.shape[1],
    )


def _on_simplex(loss: Callable[[np.ndarray], Any], models: int) -> np.ndarray:
    from scipy.optimize import minimize

    found = minimize(
        loss, np.full(models, 1 / models), jac=True, method="SLSQP", bounds=[(0.0, 1.0)] * models,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 500},
    ).x  # fmt: skip
    weights = np.clip(found, 0.0, None)
    return weights / weights.sum()
