"""A model other than a scikit-learn estimator, in a module that workers import quickly."""

from pathlib import Path

import numpy as np


class Trees:
    """XGBoost's trees, loaded from a folder."""

    def __init__(self, folder: Path) -> None:
        import xgboost

        self._booster = xgboost.Booster(model_file=folder / "trees.ubj")

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return self._booster.inplace_predict(features)
