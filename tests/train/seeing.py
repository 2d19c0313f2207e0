"""An estimator in a module that workers import quickly."""

import inspect
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin


class Seeing(RegressorMixin, BaseEstimator):
    """Scores 1 if the rows that its search was given are read-only, mapped memory; else 0."""

    def __init__(self, power: int = 0) -> None:
        self.power = power

    def fit(self, x: Any, y: Any) -> "Seeing":
        frame = inspect.currentframe()
        while frame is not None and frame.f_code.co_name != "_fit_and_score":
            frame = frame.f_back
        assert frame is not None
        given = frame.f_locals["X"], frame.f_locals["y"]
        self.mapped_ = not any(np.asarray(one).flags.writeable for one in given)
        return self

    def predict(self, x: Any) -> np.ndarray:
        return np.zeros(len(x))

    def score(self, x: Any, y: Any) -> float:
        return float(self.mapped_)
