"""Deferred imports of libraries that take long to load."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


def lazy_import(name: str) -> Any:
    """A module that is imported when one of its attributes is first used.

    For torch, modin, xgboost, mlflow, scikit-learn, ray.train and the like, at the top of a module,
    in place of an import statement. `importlib.util.LazyLoader` is not used: it enters the module
    into `sys.modules` before it is loaded, and in Python 3.11 it is not safe under threads.

    Args:
        name: Full name of the module, such as "torch.distributed".

    Raises:
        ModuleNotFoundError: At the first use, if the module is not installed.

    Example:
        >>> json = lazy_import("json")
        >>> json.loads("[1]")
        [1]
    """
    return _LazyModule(name)


class _LazyModule(ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.__name__), attribute)

    def __setattr__(self, attribute: str, value: Any) -> None:
        setattr(importlib.import_module(self.__name__), attribute, value)

    def __reduce__(self) -> Any:
        return lazy_import, (self.__name__,)
