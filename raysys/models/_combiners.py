"""Combiners: one prediction from those of an ensemble's members."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from raysys.errors import DataError
from raysys.models._blend_weights import LogisticBlend, log_odds
from raysys.models._stored_estimator import StoredEstimator, save_estimator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_FILE, _ESTIMATOR = "combiner.json", "final_estimator"


class Combiner(Protocol):
    """A way to combine predictions, which can be saved."""

    def save(self, folder: Path) -> None:
        """Write files for `load_combiner`."""


@dataclass(frozen=True)
class MeanCombiner:
    """Weighted mean."""

    weights: tuple[float, ...]

    def __call__(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """Combined predictions, float64."""
        total = np.zeros(predictions[0].shape)
        for weight, prediction in zip(self.weights, predictions, strict=True):
            total += weight * prediction
        return total

    def save(self, folder: Path) -> None:
        """Write JSON."""
        _write(folder, {"mean": self.weights})


@dataclass(frozen=True)
class VoteCombiner:
    """Share of the members whose likeliest class is this one."""

    def __call__(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """Combined predictions, float64."""
        classes = np.arange(predictions[0].shape[1])
        return np.mean([p.argmax(axis=1)[:, None] == classes for p in predictions], axis=0)

    def save(self, folder: Path) -> None:
        """Write JSON."""
        _write(folder, {"vote": None})


@dataclass(frozen=True)
class LogisticCombiner:
    """Logistic regression on the log-odds of two classes."""

    blend: LogisticBlend

    def __call__(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """Combined predictions, float64."""
        second = self.blend.probability(log_odds(columns_of(predictions)))
        return np.stack([1 - second, second], axis=1)

    def save(self, folder: Path) -> None:
        """Write JSON."""
        _write(folder, {"logistic": [self.blend.weights, self.blend.bias]})


@dataclass(frozen=True)
class StackCombiner:
    """Fitted estimator on the members' predictions."""

    estimator: Any

    def save(self, folder: Path) -> None:
        """Write JSON and the estimator's files."""
        _write(folder, {"stack": None})
        (folder / _ESTIMATOR).mkdir()
        names = [f"prediction_{number}" for number in range(self.estimator.n_features_in_)]
        inputs = None if hasattr(self.estimator, "feature_names_in_") else names
        save_estimator(self.estimator, folder / _ESTIMATOR, inputs)


def load_combiner(folder: Path) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Saved combiner: a function from predictions to one, `(n, classes)` or `(n,)`."""
    ((kind, value),) = json.loads((folder / _FILE).read_text()).items()
    if kind == "mean":
        return MeanCombiner(tuple(value))
    if kind == "vote":
        return VoteCombiner()
    if kind == "logistic":
        return LogisticCombiner(LogisticBlend(tuple(value[0]), value[1]))
    estimator = StoredEstimator(folder / _ESTIMATOR)
    return lambda predictions: estimator(columns_of(predictions))


def columns_of(predictions: Sequence[np.ndarray]) -> np.ndarray:
    """Predictions as columns; of two classes only the second's probability."""
    columns = [p[:, 1] if p.ndim == 2 and p.shape[1] == 2 else p for p in predictions]
    return np.column_stack(columns).astype(np.float64)


def to_signature(output: Any, rows: int, classes: Sequence[Any] | None, name: str) -> np.ndarray:
    """Predictions of a member in the shape of its signature.

    Args:
        output: `(n, classes)`, or of two classes the second's probability `(n,)`; `(n,)` or
            `(n, 1)` without classes.
        rows: Number of rows, n.
        classes: Classes of the signature.
        name: Name of the member in errors.

    Raises:
        DataError: The output has another shape.
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


def _write(folder: Path, value: dict[str, Any]) -> None:
    (folder / _FILE).write_text(json.dumps(value))
