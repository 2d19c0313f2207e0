"""Combiners: one prediction from those of an ensemble's members."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raysys.errors import DataError
from raysys.models._blend_weights import LogisticBlend, log_odds
from raysys.models._stored_estimator import StoredEstimator, save_estimator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_FILE, _ESTIMATOR = "combiner.json", "final_estimator"


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
