"""Graph nodes for stored models."""

from __future__ import annotations

import collections
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.arguments import checked
from raysys.errors import DataError, StorageError
from raysys.models import ModelStore, Predictor, StoredModel, signature_of
from raysys.serve._nodes import LazyObject, lazy_object_of

if TYPE_CHECKING:
    from raysys.serve._graph import Graph
    from raysys.storage import Storage

_MISSING_TTL_S = 10.0
_MAX_MISSING = 10_000


class LazyModel(LazyObject):
    """A LazyObject over a stored model: each replica fetches its files and checks their hashes."""

    @checked
    def __init__(
        self, cls: type, storage: Storage, model: StoredModel | str, /, *args: Any,
        alias: str = "champion", **kwargs: Any,
    ) -> None:  # fmt: skip
        """Describe the object.

        Args:
            cls: Class that takes the model's folder, then `args` and `kwargs`.
            storage: Storage of the model store.
            model: The model, or its registered name, resolved to the version with the alias now.
            args: Further arguments of the class.
            alias: Alias of the version, with a name.
            kwargs: Keyword arguments of the class.

        Raises:
            StorageError: Unknown model; or, in a replica, files that differ from the stored ones.
        """
        if isinstance(model, str):
            model = ModelStore(storage).get(model, alias)
        super().__init__(cls, model, *args, **kwargs)
        self._storage = storage

    def _construct(self) -> Any:
        model, *args = self._args
        return self._cls(model.fetch(self._storage), *args, **self._kwargs)


class LazyPredictor(LazyModel):
    """A node over a model of `models.save`: its parameters are the model's inputs, by name.

    Its output are probabilities `(n, classes)`, or values without classes.

    Attributes:
        classes: Classes in the order of the probabilities; None without. As the output of a served
            graph, they stand in its OpenAPI document and in its model's metadata.

    Example:
        graph = serve.Graph(
            inputs={"age": serve.Array("float64"), "bmi": serve.Array("float64")},
            nodes={"progression": serve.LazyPredictor(Storage(), "progression")},
            output="progression",
        )
    """

    def __init__(
        self, storage: Storage, model: StoredModel | str, *, alias: str = "champion",
        check_code: bool = True,
    ) -> None:  # fmt: skip
        """Describe the node.

        Args:
            storage: Storage of the model store.
            model: The model, or its registered name, resolved to the version with the alias now.
            alias: Alias of the version, with a name.
            check_code: Refuse a model whose code has changed since it was stored.

        Raises:
            StorageError: Unknown model; or, in a replica, what `models.load` refuses.
            DataError: The model's signature names no inputs.
        """
        super().__init__(Predictor, storage, model, alias=alias, check_code=check_code)
        signature = signature_of(storage, self._args[0])
        self._inputs = tuple(signature["inputs"])
        self.classes: list[Any] | None = signature.get("classes")

    def __call__(self, *columns: Any) -> Any:
        return self._get()(dict(zip(self._inputs or (), columns, strict=True)))


def stored_models(graphs: Iterable[Graph]) -> list[str]:
    """Names and versions, `films v3`, of the stored models of graphs' nodes."""
    calls = (graph.nodes[name].call for graph in graphs for name in graph.order)
    objects = filter(None, map(lazy_object_of, calls))
    arguments = (value for lazy in objects for value in (*lazy._args, *lazy._kwargs.values()))
    models = (value for value in arguments if isinstance(value, StoredModel))
    return list(dict.fromkeys(f"{model.name} v{model.version}" for model in models))


class ModelPool:
    """Many stored models of one shape behind one node; each row names its model.

    `LazyObject(ModelPool, Mlp, storage, "price", max_loaded=16)` answers a row whose `model` is
    "berlin" with the registered model "price-berlin". Models are loaded on demand; the least
    recently used one is evicted.
    """

    @checked
    def __init__(
        self, factory: Callable[..., Any], storage: Storage, family: str, *,
        max_loaded: int = 16, alias: str = "champion",
    ) -> None:  # fmt: skip
        """Start with no model loaded.

        Args:
            factory: Takes a model's folder; its result is called with the rows of the model.
            storage: Storage of the model store.
            family: Prefix of the registered names.
            max_loaded: Maximum number of models in memory.
            alias: Alias of each model's version, resolved when it is loaded.
        """
        self._factory, self._store, self._storage = factory, ModelStore(storage), storage
        self._family, self._alias, self._max_loaded = family, alias, max_loaded
        self._loaded: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._missing_until: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, model: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Predictions `(n, ...)` in row order.

        Args:
            model: Model names `(n,)` of str.
            x: Values `(n, ...)`; each model is called with its rows.

        Raises:
            DataError: Unknown model.
        """
        predictions: np.ndarray | None = None
        names, which = np.unique(model, return_inverse=True)
        for number, name in enumerate(names):
            rows = np.flatnonzero(which == number)
            values = np.asarray(self._get(str(name))(x[rows]))
            if predictions is None:
                predictions = np.empty((len(x), *values.shape[1:]), values.dtype)
            predictions[rows] = values
        return np.empty(0, np.float32) if predictions is None else predictions

    def _get(self, name: str) -> Any:
        with self._lock:
            if name in self._loaded:
                self._loaded.move_to_end(name)
                return self._loaded[name]
            if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name):
                raise DataError(f"model {name!r}: use letters, digits, _, . and -")
            missing = f"model {name!r} is not in the store"
            if time.monotonic() < self._missing_until.get(name, 0.0):
                raise DataError(missing)
            try:
                stored = self._store.get(f"{self._family}-{name}", self._alias)
            except StorageError as error:
                if len(self._missing_until) > _MAX_MISSING:
                    self._missing_until.clear()
                self._missing_until[name] = time.monotonic() + _MISSING_TTL_S
                raise DataError(missing) from error
            while len(self._loaded) >= self._max_loaded:
                self._loaded.popitem(last=False)
            self._loaded[name] = self._factory(stored.fetch(self._storage))
            return self._loaded[name]
