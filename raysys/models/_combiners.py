"""Combiners: one prediction from those of an ensemble's members, with fitted weights."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raysys.errors import DataError
from raysys.imports import lazy_import
from raysys.models._stored_estimator import StoredEstimator, save_estimator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

linear_model = lazy_import("sklearn.linear_model")
optimize = lazy_import("scipy.optimize")

_FILE, _ESTIMATOR = "combiner.json", "final_estimator"
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


@dataclass(frozen=True)
class Combiner:
    """A way to combine predictions, which can be saved.

    Attributes:
        kind: "mean" weighted; "vote", the share of the members whose likeliest class is this one;
            "logistic", logistic regression on the log-odds of two classes; or "stack", an
            estimator on the members' predictions.
        value: Weights of a mean, `LogisticBlend`, fitted estimator, or None.
    """

    kind: Literal["mean", "vote", "logistic", "stack"]
    value: Any = None

    def save(self, folder: Path) -> None:
        """Write files for `load_combiner`."""
        state = self.value
        if self.kind == "logistic":
            state = [self.value.weights, self.value.bias]
        elif self.kind == "stack":
            state = None
            (folder / _ESTIMATOR).mkdir()
            names = [f"prediction_{number}" for number in range(self.value.n_features_in_)]
            inputs = None if hasattr(self.value, "feature_names_in_") else names
            save_estimator(self.value, folder / _ESTIMATOR, inputs)
        (folder / _FILE).write_text(json.dumps({self.kind: state}))


def load_combiner(folder: Path) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Saved combiner: a function from predictions to one, float64 `(n, classes)` or `(n,)`."""
    ((kind, value),) = json.loads((folder / _FILE).read_text()).items()
    if kind == "mean":
        return functools.partial(_mean, value)
    if kind == "vote":
        return _vote
    if kind == "logistic":
        return functools.partial(_logistic, LogisticBlend(tuple(value[0]), value[1]))
    estimator = StoredEstimator(folder / _ESTIMATOR)
    return lambda predictions: estimator(columns_of(predictions))


def _mean(weights: Sequence[float], predictions: Sequence[np.ndarray]) -> np.ndarray:
    total = np.zeros(predictions[0].shape)
    for weight, prediction in zip(weights, predictions, strict=True):
        total += weight * prediction
    return total


def _vote(predictions: Sequence[np.ndarray]) -> np.ndarray:
    classes = np.arange(predictions[0].shape[1])
    return np.mean([p.argmax(axis=1)[:, None] == classes for p in predictions], axis=0)


def _logistic(blend: LogisticBlend, predictions: Sequence[np.ndarray]) -> np.ndarray:
    second = blend.probability(log_odds(columns_of(predictions)))
    return np.stack([1 - second, second], axis=1)


def columns_of(predictions: Sequence[np.ndarray]) -> np.ndarray:
    """Predictions as columns; of two classes only the second's probability."""
    columns = [p[:, 1] if p.ndim == 2 and p.shape[1] == 2 else p for p in predictions]
    return np.column_stack(columns).astype(np.float64)


def to_signature(output: Any, rows: int, classes: Sequence[Any] | None, name: str) -> np.ndarray:
    """Predictions of a member in the shape of its signature, `(n, classes)` or `(n,)`.

    `output` may also have the second of two classes' probability `(n,)`, or `(n, 1)` without
    classes.
    """
    predictions = np.asarray(output)
    if classes is None and predictions.shape == (rows, 1):
        return predictions[:, 0]
    if classes is not None and len(classes) == 2 and predictions.shape == (rows,):
        return np.stack([1 - predictions, predictions], axis=1)
    expected = (rows,) if classes is None else (rows, len(classes))
    if predictions.shape != expected:
        raise DataError(
            f"{name} returned shape {predictions.shape}; its signature requires {expected}"
        )
    return predictions


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
