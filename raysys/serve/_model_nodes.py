"""Nodes over stored models."""

from __future__ import annotations

import collections
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.errors import DataError, StorageError
from raysys.models import ModelStore
from raysys.serve._nodes import Lazy

if TYPE_CHECKING:
    from collections.abc import Callable

    from raysys.models import StoredModel
    from raysys.storage import Storage

_UNKNOWN_S = 10.0


def from_store(
    make: type,
    storage: Storage,
    model: StoredModel | str,
    *args: Any,
    alias: str = "champion",
    **kwargs: Any,
) -> Lazy:
    """A Lazy over a stored model: every replica loads the files that the store recorded.

    Args:
        make: Class that is given the model's folder, then `args` and `kwargs`.
        storage: Of the store.
        model: The model, or its registered name: then the version that `alias` points at now.
        args: Further arguments of the class.
        alias: Used with a name.
        kwargs: Likewise.

    Raises:
        StorageError: There is no such model; or later, in a replica, its files are not those
            that were stored.
    """
    found = ModelStore(storage).get(model, alias) if isinstance(model, str) else model
    return _Stored(make, storage, found, args, kwargs)


class _Stored(Lazy):
    """A Lazy whose first argument is a folder that is fetched and checked where it is made."""

    def __init__(
        self, make: type, storage: Storage, model: StoredModel, args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(make, model, *args, **kwargs)
        self._storage = storage

    def _get(self) -> Any:
        if self._made is None:
            model, *args = self._args
            self._made = self._make(model.fetch(self._storage), *args, **self._kwargs)
        return self._made


class ModelPool:
    """Many stored models of one shape behind one node; each row names its own.

    `Lazy(ModelPool, Mlp, storage, "price", max_loaded=16)` answers a row whose `model` is
    "berlin" by the model that the store has under "price-berlin". Models are loaded when a row
    asks for them, and the one that was asked for longest ago makes room.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        storage: Storage,
        family: str,
        *,
        max_loaded: int = 16,
        alias: str = "champion",
    ) -> None:
        """Start with no model loaded.

        Args:
            make: Makes a model of its folder; called with the rows of a batch that name it.
            storage: Of the store.
            family: What the registered names begin with.
            max_loaded: Models in memory at once.
            alias: Of each model, resolved when it is loaded.
        """
        self._make, self._store, self._storage = make, ModelStore(storage), storage
        self._family, self._alias, self._max_loaded = family, alias, max_loaded
        self._loaded: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._unknown: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, model: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Answers `(n, ...)` in the rows' order.

        Args:
            model: Names `(n,)` of str.
            x: Values `(n, ...)`, of which each model is given its rows.

        Raises:
            DataError: The store has no such model.
        """
        answers: np.ndarray | None = None
        names, which = np.unique(model, return_inverse=True)
        for number, name in enumerate(names):
            rows = np.flatnonzero(which == number)
            made = np.asarray(self._get(str(name))(x[rows]))
            if answers is None:
                answers = np.empty((len(x), *made.shape[1:]), made.dtype)
            answers[rows] = made
        return np.empty(0, np.float32) if answers is None else answers

    def _get(self, name: str) -> Any:
        with self._lock:
            if name in self._loaded:
                self._loaded.move_to_end(name)
                return self._loaded[name]
            if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name):
                raise DataError(f"model {name!r}: use letters, digits, _, . and -")
            if time.monotonic() < self._unknown.get(name, 0.0):
                raise DataError(f"model {name!r} is not in the store")
            try:
                found = self._store.get(f"{self._family}-{name}", self._alias)
            except StorageError as error:
                if len(self._unknown) > 10_000:
                    self._unknown.clear()
                self._unknown[name] = time.monotonic() + _UNKNOWN_S
                raise DataError(f"model {name!r} is not in the store") from error
            while len(self._loaded) >= self._max_loaded:
                self._loaded.popitem(last=False)
            self._loaded[name] = self._make(found.fetch(self._storage))
            return self._loaded[name]
