"""Stored models of any kind: their files, and the predictor that loads them."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.errors import DataError, StorageError, unknown_names
from raysys.models import _stored_module
from raysys.models._columns import named_columns
from raysys.models._combiners import to_signature
from raysys.models._ensemble import Ensemble, StoredEnsemble
from raysys.models._importable import code_record, import_path, load_code
from raysys.models._stored_estimator import StoredEstimator, estimator_signature, save_estimator

if TYPE_CHECKING:
    from pathlib import Path

_METADATA, _MODEL, _FEATURIZER = "predictor.json", "model", "featurizer"


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model with its featurizer, ready to be written.

    Attributes:
        signature: Names of the inputs, and classes or None.
        write_model: Function that fills a folder.
        model_class: Class that is created with that folder, by its `load` if it has one.
        featurizer: Fitted featurizer whose features are the model's inputs, or None.
    """

    signature: dict[str, Any]
    write_model: Callable[[Path], None]
    model_class: type
    featurizer: Any = None

    @classmethod
    def of(
        cls, model: Any, *, featurizer: Any = None, inputs: Sequence[str] | None = None,
        classes: Sequence[Any] | None = None, method: str | None = None,
    ) -> ModelFiles:  # fmt: skip
        """Files of a model; see `save`.

        Raises:
            DataError: The model cannot be stored, or its features are not the featurizer's.
        """
        if isinstance(model, ModelFiles):
            return model
        if isinstance(model, type):
            raise DataError(f"{model.__name__} is a class: give a trained instance of it")
        if featurizer is not None and inputs is not None:
            raise DataError("featurizer and inputs: the featurizer names the inputs; give one")
        module = _module_of(model, method)
        if module is not None:
            method = method or ("predict" if hasattr(type(module), "predict") else "forward")
            module, method = _stored_module.part_of(module, method)
            names = inputs if featurizer is None else featurizer.feature_names
            signature = _stored_module.module_signature(module, method, names, classes)
            write: Callable[[Path], None] = functools.partial(
                _stored_module.save_module, module,
                method=method, signature=signature, stack=names is not None,
            )  # fmt: skip
            return cls._with(featurizer, signature, write, _stored_module.StoredModule)
        if method is not None:
            raise DataError(f"method={method!r} is for torch modules, not {type(model).__name__}")
        if isinstance(model, Ensemble):
            return cls._with(featurizer, model.signature, model.write, StoredEnsemble)
        if all(hasattr(model, name) for name in ("save", "load", "signature")) and callable(model):
            import_path(type(model))
            return cls._with(featurizer, model.signature, model.save, type(model))
        if hasattr(model, "fit") and hasattr(model, "predict"):
            signature = estimator_signature(model, inputs)
            write = functools.partial(save_estimator, model, inputs=inputs)
            return cls._with(featurizer, signature, write, StoredEstimator)
        raise DataError(
            f"{type(model).__name__} cannot be stored: give a FitResult, a BoostedModel, a torch "
            "module, an estimator, an Ensemble, or an object with signature, __call__, save and "
            "load; for others register a function that writes the files"
        )

    @classmethod
    def _with(
        cls, featurizer: Any, signature: dict[str, Any], write: Callable[[Path], None],
        model_class: type,
    ) -> ModelFiles:  # fmt: skip
        if featurizer is None:
            return cls(signature, write, model_class)
        features = featurizer.feature_names
        if unknown := [name for name in signature["inputs"] if name not in features]:
            raise DataError(
                f"the model needs features that the featurizer does not give: "
                f"{unknown_names(unknown[:20], features)}; give the one that it was trained with"
            )
        signature = signature | {"inputs": list(featurizer.inputs)}
        return cls(signature, write, model_class, featurizer)

    def write(self, folder: Path) -> None:
        """Fill a folder with the files, for `Predictor`."""
        (folder / _MODEL).mkdir()
        self.write_model(folder / _MODEL)
        metadata = {"signature": self.signature, "model": _record(self.model_class)}
        if self.featurizer is not None:
            self.featurizer.save(folder / _FEATURIZER)
            metadata["featurizer"] = _record(type(self.featurizer))
        (folder / _METADATA).write_text(json.dumps(metadata, indent=1))


class Predictor:
    """A model of `save` with its featurizer, which predicts batches.

    Attributes:
        model: The BoostedModel, torch module, estimator or ensemble itself.
        featurizer: Its featurizer, or None.
        inputs: Names of the inputs.
        classes: Classes in the order of the probabilities; None without.
        takes_columns: Whether `predict` passes columns by name.
    """

    takes_columns = True

    def __init__(self, folder: Path, *, check_code: bool = True) -> None:
        """Load a model from its folder.

        Args:
            folder: Folder of the stored model.
            check_code: Refuse a model whose code has changed since it was stored.

        Raises:
            StorageError: The folder has no model of `save`; code that the model needs is missing
                or has changed; or another release of its library wrote it.
        """
        if not (folder / _METADATA).is_file():
            raise StorageError(
                f"{folder} holds no model of raysys.models.save: load it with the class that "
                "wrote it, or save the model again"
            )
        metadata = json.loads((folder / _METADATA).read_text())
        self._model = _load(metadata["model"], folder / _MODEL, check_code)
        self.model: Any = getattr(self._model, "inner", self._model)
        self.featurizer: Any = None
        if "featurizer" in metadata:
            self.featurizer = _load(metadata["featurizer"], folder / _FEATURIZER, check_code)
        self.inputs: list[str] = metadata["signature"]["inputs"]
        self.classes: list[Any] | None = metadata["signature"]["classes"]

    def __repr__(self) -> str:
        classes = f", {len(self.classes)} classes" if self.classes else ""
        featurizer = " with a featurizer" if self.featurizer is not None else ""
        return (
            f"Predictor({type(self.model).__name__}{featurizer}, {len(self.inputs)} inputs"
            f"{classes})"
        )

    def __call__(self, features: Any) -> np.ndarray:
        """Probabilities float `(n, classes)` with classes, otherwise values `(n, ...)`.

        Args:
            features: Columns by name (a mapping, a frame), or a matrix `(n, inputs)` in the order
                of the inputs. Of a torch module without a featurizer each input may be `(n, ...)`.

        Raises:
            DataError: An input is missing or of a wrong type.
        """
        if self.featurizer is not None:
            columns = {n: _plain(c) for n, c in named_columns(features, self.inputs).items()}
            matrix = self.featurizer.transform_batch(columns)
            features = dict(zip(self.featurizer.feature_names, matrix.T, strict=True))
        output = self._model(features)
        if self.classes is None:
            return np.asarray(output)
        return to_signature(output, len(output), self.classes, type(self.model).__name__)


def _module_of(model: Any, method: str | None) -> Any:
    """The torch module of a model: itself, or that of a training's result; else None."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        return _stored_module.plain_module(model)
    if not hasattr(model, "state_dict") or not hasattr(model, "module"):
        return None
    module = model.module()
    if method is None and not hasattr(type(module), "predict"):
        raise DataError(
            f"{type(module).__name__}.forward returns the loss: give it a method `predict` that "
            "returns a row of output for each of a batch, or save with method=, the name of one "
            "or of a part of the module"
        )
    return module


def _record(code: type) -> dict[str, str | None]:
    return code_record(import_path(code))


def _load(record: dict[str, str | None], folder: Path, check_code: bool) -> Any:
    code = load_code(record, f"the model at {folder}", check=check_code)
    if code is _stored_module.StoredModule:
        return code(folder, check_code=check_code)
    return getattr(code, "load", code)(folder)


def _plain(column: Any) -> Any:
    """A column as the featurizer takes it; pandas has text as categories."""
    return column.to_numpy() if hasattr(column, "to_numpy") else column
