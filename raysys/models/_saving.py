"""Models of any kind into the store and back, in one call each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raysys.models._model_store import ModelStore, StoredModel
from raysys.models._predictor import ModelFiles, Predictor
from raysys.storage import Storage

if TYPE_CHECKING:
    from raysys.tracking import TrackedRun


def save(
    model: Any, name: str, storage: Storage | None = None, *, featurizer: Any = None,
    inputs: Sequence[str] | None = None, classes: Sequence[Any] | None = None,
    method: str | None = None, alias: str | None = "champion", run: TrackedRun | None = None,
) -> StoredModel:  # fmt: skip
    """Store a trained model as a new version, which `load` reads in any process.

    No cluster is needed. Tensors, trees and features are stored as data; the code of modules and
    of other classes by import path, with a digest of its source. Estimators are pickled.

    Example:
        result = train.fit("digits", Digits(), tables, settings, Storage())
        models.save(result, "digits", classes=range(10))
        models.load("digits")({"x": pixels})

    Args:
        model: `FitResult`, `BoostedModel`, torch module, scikit-learn estimator or `Ensemble`; or
            an object that is called with a batch, has a `signature` and `save(folder)`, and
            whose class has `load(folder)`.
        name: Name of the registered model.
        storage: The storage root, see `Storage` for the default.
        featurizer: Fitted featurizer; inputs are then its raw columns.
        inputs: Names of a torch module's columns, which reach it as one matrix `(n, inputs)`; by
            default its arguments are inputs, `(n, ...)` each. Names of the features of an
            estimator that was fitted without.
        classes: Classes of a torch module that returns probabilities `(n, classes)`.
        method: Method or part of a torch module that predicts; default `predict`, or `forward`.
        alias: Alias that points at the new version; None leaves all as they are.
        run: Run that trained the model.

    Raises:
        DataError: The model cannot be stored: the message names the part.
    """
    store = ModelStore(storage or Storage())
    files = ModelFiles.of(
        model, featurizer=featurizer, inputs=inputs, classes=classes, method=method
    )
    manifest = {"signature": files.signature}
    stored = store.register(name, files.write, manifest=manifest, run=run, in_task=False)
    if alias is not None:
        store.promote(stored, alias)
    return stored


def load(
    model: StoredModel | str, storage: Storage | None = None, *, alias: str = "champion",
    version: int | None = None, check_code: bool = True,
) -> Predictor:  # fmt: skip
    """A stored model, ready to predict in this process.

    Args:
        model: The model, or its registered name.
        storage: The storage root, see `Storage` for the default.
        alias: Alias of the version, with a name.
        version: Version, in place of an alias.
        check_code: Refuse a model whose code has changed since it was stored.

    Raises:
        StorageError: The model is unknown, its files were changed, code that it needs is missing
            or has changed, or another release of its library wrote it.
    """
    storage = storage or Storage()
    if isinstance(model, str):
        model = ModelStore(storage).get(model, alias, version)
    return Predictor(model.fetch(storage), check_code=check_code)
