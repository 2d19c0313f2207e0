"""Weights of several models' predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.imports import lazy_import

if TYPE_CHECKING:
    from collections.abc import Callable

linear_model = lazy_import("sklearn.linear_model")
optimize = lazy_import("scipy.optimize")

_TINY = 1e-15  # a probability of 0 would have an infinite loss


@dataclass(frozen=True)
class LogisticBlend:
    """A calibrated probability from the log-odds of several models.

    Logistic regression without a penalty (Platt, "Probabilistic outputs for support vector
    machines", 1999, for several models).

    Attributes:
        weights: Weights of the models' log-odds.
        bias: Intercept.
    """

    weights: tuple[float, ...]
    bias: float

    @classmethod
    def fit(cls, log_odds: np.ndarray, labels: np.ndarray) -> LogisticBlend:
        """Fit to log-odds `(n, models)` and labels `(n,)` of two classes."""
        fitted = linear_model.LogisticRegression(C=np.inf).fit(log_odds, labels)
        return cls(tuple(map(float, fitted.coef_[0])), float(fitted.intercept_[0]))

    def probability(self, log_odds: np.ndarray) -> np.ndarray:
        """Probability of the second class: float64 `(n,)` from log-odds `(n, models)`."""
        return 1 / (1 + np.exp(-(log_odds.astype(np.float64) @ np.array(self.weights) + self.bias)))


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Log-odds float64, of the same shape."""
    inside = np.clip(probability.astype(np.float64), _TINY, 1 - _TINY)
    return np.log(inside) - np.log1p(-inside)


def convex_log_loss_weights(probabilities: np.ndarray) -> np.ndarray:
    """Weights of the mixture with the smallest log loss, which is convex in them.

    From each model's probability of the true class `(n, models)` to float64 `(models,)`, not
    negative, of sum 1.
    """
    probabilities = np.maximum(probabilities.astype(np.float64), _TINY)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(probabilities @ weights, _TINY)
        return -float(np.log(mixed).mean()), -(probabilities / mixed[:, None]).mean(axis=0)

    return _on_simplex(loss, probabilities.shape[1])


def convex_squared_error_weights(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights of the mean of values `(n, models)` with the smallest squared error to labels `(n,)`.

    As in `convex_log_loss_weights`.
    """
    # As the weights sum to 1.
    errors = values.astype(np.float64) - labels[:, None].astype(np.float64)
    products = errors.T @ errors / max(float((errors**2).sum()), np.finfo(float).tiny)
    return _on_simplex(
        lambda weights: (float(weights @ products @ weights), 2 * products @ weights),
        values.shape[1],
    )


def _on_simplex(loss: Callable[[np.ndarray], Any], models: int) -> np.ndarray:
    solution = optimize.minimize(
        loss, np.full(models, 1 / models), jac=True, method="SLSQP", bounds=[(0.0, 1.0)] * models,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 500},
    ).x  # fmt: skip
    weights = np.clip(solution, 0.0, None)
    return weights / weights.sum()
