"""How the answers of an ensemble's members become one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from raysys.errors import DataError
from raysys.models._blend_weights import LogisticBlend, log_odds
from raysys.models._estimator import StoredEstimator, save_estimator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_FILE, _META = "combine.json", "meta"


class Combine(Protocol):
    """A way to make one answer of several."""

    def save(self, folder: Path) -> None:
        """Write what `load_combine` reads."""


@dataclass(frozen=True)
class Mean:
    """A mean, weighted."""

    weights: tuple[float, ...]

    def __call__(self, said: Sequence[np.ndarray]) -> np.ndarray:
        """float64."""
        made = np.zeros(said[0].shape)
        for weight, one in zip(self.weights, said, strict=True):
            made += weight * one
        return made

    def save(self, folder: Path) -> None:
        """As JSON."""
        _write(folder, {"mean": self.weights})


@dataclass(frozen=True)
class Vote:
    """The share of the members that hold a class for the likeliest."""

    def __call__(self, said: Sequence[np.ndarray]) -> np.ndarray:
        """float64."""
        classes = np.arange(said[0].shape[1])
        return np.mean([one.argmax(axis=1)[:, None] == classes for one in said], axis=0)

    def save(self, folder: Path) -> None:
        """As JSON."""
        _write(folder, {"vote": None})


@dataclass(frozen=True)
class Logistic:
    """A logistic regression on the log-odds of two classes."""

    blend: LogisticBlend

    def __call__(self, said: Sequence[np.ndarray]) -> np.ndarray:
        """float64."""
        second = self.blend.probability(log_odds(columns_of(said)))
        return np.stack([1 - second, second], axis=1)

    def save(self, folder: Path) -> None:
        """As JSON."""
        _write(folder, {"logistic": [self.blend.weights, self.blend.bias]})


@dataclass(frozen=True)
class Meta:
    """A fitted estimator over the members' answers."""

    estimator: Any

    def save(self, folder: Path) -> None:
        """As JSON and the estimator's own files."""
        _write(folder, {"meta": None})
        (folder / _META).mkdir()
        names = [f"answer_{at}" for at in range(self.estimator.n_features_in_)]
        inputs = None if hasattr(self.estimator, "feature_names_in_") else names
        save_estimator(self.estimator, folder / _META, inputs)


def load_combine(folder: Path) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """What makes one answer `(n, classes)` or `(n,)` of the members', as `save` wrote it."""
    ((kind, value),) = json.loads((folder / _FILE).read_text()).items()
    if kind == "mean":
        return Mean(tuple(value))
    if kind == "vote":
        return Vote()
    if kind == "logistic":
        return Logistic(LogisticBlend(tuple(value[0]), value[1]))
    estimator = StoredEstimator(folder / _META)
    return lambda said: estimator(columns_of(said))


def columns_of(said: Sequence[np.ndarray]) -> np.ndarray:
    """Answers side by side, of two classes the second's probability alone."""
    two = [one[:, 1] if one.ndim == 2 and one.shape[1] == 2 else one for one in said]
    return np.column_stack(two).astype(np.float64)


def uniform(answer: Any, rows: int, classes: Sequence[Any] | None, name: str) -> np.ndarray:
    """A member's answer in the form of its signature.

    Args:
        answer: `(n, classes)`, or of two classes the second's probability `(n,)`; `(n,)` or
            `(n, 1)` without classes.
        rows: n.
        classes: Of the signature.
        name: Of the member, for errors.

    Raises:
        DataError: It has another shape.
    """
    given = np.asarray(answer)
    if classes is None and given.shape == (rows, 1):
        return given[:, 0]
    if classes is not None and len(classes) == 2 and given.shape == (rows,):
        return np.stack([1 - given, given], axis=1)
    wanted = (rows,) if classes is None else (rows, len(classes))
    if given.shape != wanted:
        raise DataError(f"{name} answers with shape {given.shape}; its signature says {wanted}")
    return given


def _write(folder: Path, value: dict[str, Any]) -> None:
    (folder / _FILE).write_text(json.dumps(value))
