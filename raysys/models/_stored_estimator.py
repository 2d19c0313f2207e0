"""scikit-learn estimators in the model store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.arguments import checked
from raysys.errors import DataError
from raysys.identity import check_release
from raysys.imports import lazy_import

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

joblib = lazy_import("joblib")
pandas = lazy_import("pandas")
sklearn = lazy_import("sklearn")

_FILE, _METADATA = "estimator.joblib", "estimator.json"


@checked
def estimator_signature(estimator: Any, inputs: Sequence[str] | None = None) -> dict[str, Any]:
    """Signature of a fitted estimator, for `Run.store_model`.

    Args:
        estimator: Fitted estimator.
        inputs: Names of its features; default those that it was fitted with.

    Returns:
        `inputs`, and `classes` in the order of `predict_proba`'s columns, or None of a regressor.

    Raises:
        DataError: The estimator has no feature names, or is a classifier without `predict_proba`.
    """
    names = inputs if inputs is not None else getattr(estimator, "feature_names_in_", None)
    kind = type(estimator).__name__
    if names is None:
        raise DataError(f"{kind} was fitted without feature names: pass them as inputs")
    classes = getattr(estimator, "classes_", None)
    if classes is not None and not hasattr(estimator, "predict_proba"):
        raise DataError(
            f"{kind} has no predict_proba: wrap it in a CalibratedClassifierCV and fit that"
        )
    return {
        "inputs": [str(name) for name in names],
        "classes": None if classes is None else np.asarray(classes).tolist(),
    }


@checked
def save_estimator(estimator: Any, folder: Path, inputs: Sequence[str] | None = None) -> None:
    """Write a fitted estimator to a folder: the `write` of `Run.store_model`.

    Example:
        run.store_model("churn", functools.partial(save_estimator, fitted),
                        signature=estimator_signature(fitted))
        graph_node = serve.LazyModel(StoredEstimator, storage, "churn")

    Args:
        estimator: Fitted estimator. It is pickled: a writer of the store can run code where it is
            loaded. The store refuses files that were changed after they were registered.
        folder: Folder to write to.
        inputs: See `estimator_signature`.
    """
    signature = estimator_signature(estimator, inputs)
    metadata = {"scikit_learn": sklearn.__version__, "signature": signature}
    joblib.dump(estimator, folder / _FILE)
    (folder / _METADATA).write_text(json.dumps(metadata))


class StoredEstimator:
    """A stored estimator that predicts batches, for `serve.LazyModel` and ensembles.

    Attributes:
        inner: The estimator.
        inputs: Names of the features.
        classes: Classes in the order of the probabilities; None of a regressor.
    """

    def __init__(self, folder: Path) -> None:
        """Load an estimator written by `save_estimator`.

        Raises:
            StorageError: The estimator was written by another release of scikit-learn.
        """
        metadata = json.loads((folder / _METADATA).read_text())
        check_release(
            "scikit-learn", metadata["scikit_learn"], sklearn.__version__,
            f"the estimator at {folder}", equal=True,
        )  # fmt: skip
        self.inner = joblib.load(folder / _FILE)
        self.inputs: list[str] = metadata["signature"]["inputs"]
        self.classes: list[Any] | None = metadata["signature"]["classes"]

    def __call__(self, features: np.ndarray | pd.DataFrame | Mapping[str, Any]) -> np.ndarray:
        """Probabilities float `(n, classes)` of a classifier, values `(n,)` of a regressor.

        Args:
            features: Numbers `(n, inputs)` in their order, or columns by name.

        Raises:
            DataError: The features differ from those of the fit.
        """
        is_regressor = self.classes is None
        predict = self.inner.predict if is_regressor else self.inner.predict_proba
        return np.asarray(predict(self._as_fitted(features)))

    def _as_fitted(self, features: Any) -> Any:
        if isinstance(features, Mapping | pandas.DataFrame):
            if missing := [name for name in self.inputs if name not in features]:
                raise DataError(f"missing features: {missing}; the model needs {self.inputs[:20]}")
            return pandas.DataFrame({name: features[name] for name in self.inputs})
        matrix = np.asarray(features)
        if matrix.ndim != 2 or matrix.shape[1] != len(self.inputs):
            raise DataError(
                f"features of shape {matrix.shape}; expected (rows, {len(self.inputs)}): "
                f"{self.inputs[:20]}"
            )
        has_names = hasattr(self.inner, "feature_names_in_")
        return pandas.DataFrame(matrix, columns=self.inputs) if has_names else matrix
