"""scikit-learn estimators in the model store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np

from raysys.errors import DataError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

_FILE, _FACTS = "estimator.joblib", "estimator.json"


def estimator_signature(estimator: Any, inputs: Sequence[str] | None = None) -> dict[str, Any]:
    """Form of a fitted estimator's inputs and answers, for `Run.store_model`.

    Args:
        estimator: Fitted.
        inputs: Names of its features; those that it was fitted with, if it knows them.

    Returns:
        `inputs`, and `classes` in the order of the answers' columns, or None of a regressor.

    Raises:
        DataError: The names are not known, or it is a classifier without probabilities.
    """
    known = inputs if inputs is not None else getattr(estimator, "feature_names_in_", None)
    kind = type(estimator).__name__
    if known is None:
        raise DataError(f"{kind} was fitted without names: give those of its features as inputs")
    classes = getattr(estimator, "classes_", None)
    if classes is not None and not hasattr(estimator, "predict_proba"):
        raise DataError(
            f"{kind} gives no probabilities: put it into a CalibratedClassifierCV and fit that"
        )
    return {
        "inputs": [str(name) for name in known],
        "classes": None if classes is None else np.asarray(classes).tolist(),
    }


def save_estimator(estimator: Any, folder: Path, inputs: Sequence[str] | None = None) -> None:
    """Write a fitted estimator to a folder: what `Run.store_model` takes as its `write`.

    Example:
        run.store_model("churn", functools.partial(save_estimator, fitted),
                        signature=estimator_signature(fitted))
        graph_node = serve.LazyModel(StoredEstimator, storage, "churn")

    Args:
        estimator: Fitted. It is pickled: whoever may write to the store may have code run where
            it is loaded. The store refuses files that were changed after they were stored.
        folder: Where.
        inputs: See `estimator_signature`.
    """
    import sklearn

    facts = {
        "scikit_learn": sklearn.__version__,
        "signature": estimator_signature(estimator, inputs),
    }
    joblib.dump(estimator, folder / _FILE)
    (folder / _FACTS).write_text(json.dumps(facts))


class StoredEstimator:
    """A stored estimator, to be asked in batches: for `serve.LazyModel` and ensembles.

    Attributes:
        inputs: Names of its features.
        classes: In the order of the answers' columns; None of a regressor.
    """

    def __init__(self, folder: Path) -> None:
        """Load an estimator that `save_estimator` wrote.

        Raises:
            StorageError: It was written by another release of scikit-learn.
        """
        import sklearn

        facts = json.loads((folder / _FACTS).read_text())
        if _release(facts["scikit_learn"]) != _release(sklearn.__version__):
            raise StorageError(
                f"the estimator at {folder} was stored by scikit-learn {facts['scikit_learn']}, "
                f"and {sklearn.__version__} may answer otherwise: install the former, or fit and "
                "store it again"
            )
        self._estimator = joblib.load(folder / _FILE)
        self.inputs: list[str] = facts["signature"]["inputs"]
        self.classes: list[Any] | None = facts["signature"]["classes"]

    def __call__(self, features: np.ndarray | pd.DataFrame | Mapping[str, Any]) -> np.ndarray:
        """Probabilities float `(n, classes)` of a classifier, values `(n,)` of a regressor.

        Args:
            features: Numbers `(n, inputs)` in their order, or columns by name.

        Raises:
            DataError: The features are not those that it was fitted with.
        """
        ask = self._estimator.predict if self.classes is None else self._estimator.predict_proba
        return np.asarray(ask(self._as_fitted(features)))

    def _as_fitted(self, features: Any) -> Any:
        import pandas as pd

        if isinstance(features, Mapping | pd.DataFrame):
            if missing := [name for name in self.inputs if name not in features]:
                raise DataError(f"{missing} are missing of the features {self.inputs[:20]}")
            return pd.DataFrame({name: features[name] for name in self.inputs})
        matrix = np.asarray(features)
        if matrix.ndim != 2 or matrix.shape[1] != len(self.inputs):
            raise DataError(
                f"features of shape {matrix.shape}; give (rows, {len(self.inputs)}): "
                f"{self.inputs[:20]}"
            )
        named = hasattr(self._estimator, "feature_names_in_")
        return pd.DataFrame(matrix, columns=self.inputs) if named else matrix


def _release(version: str) -> list[str]:
    return version.split(".")[:2]
