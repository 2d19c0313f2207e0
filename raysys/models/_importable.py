"""Classes and functions by import path: the code of what is stored, and whether it changed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from raysys.errors import DataError, StorageError
from raysys.identity import source_digest


def import_path(value: Any) -> str:
    """`module:name` of a class or function, by the shortest module that exports it.

    Raises:
        DataError: Another process cannot import it: it is in `__main__` or in a function.
    """
    module, name = value.__module__, value.__qualname__
    if module == "__main__" or "<locals>" in name or "<lambda>" in name:
        raise DataError(
            f"{name} of {module} cannot be imported by name: move it to the top level of a module "
            "that the serving processes have"
        )
    parts = module.split(".")
    for count in range(1, len(parts)):
        parent = ".".join(parts[:count])
        if getattr(sys.modules.get(parent), name, None) is value:
            return f"{parent}:{name}"
    return f"{module}:{name}"


def code_record(path: str) -> dict[str, str | None]:
    """Import path of code, digest of its source (None of installed code), and its folder."""
    value = _resolve(path)
    digest = source_digest(value)
    if digest is None:
        return {"path": path, "source": None, "folder": None}
    module = sys.modules[value.__module__]
    depth = value.__module__.count(".") + hasattr(module, "__path__")
    return {
        "path": path, "source": digest, "folder": str(Path(str(module.__file__)).parents[depth]),
    }  # fmt: skip


def load_code(record: dict[str, str | None], what: str, *, check: bool = True) -> Any:
    """The class or function of a `code_record`; with `check`, of the same source.

    Raises:
        StorageError: It cannot be imported, or its source is not that of the record.
    """
    path = str(record["path"])
    try:
        value = _resolve(path)
    except (ImportError, AttributeError) as error:
        origin = f" It was in {record['folder']}: add that" if record["folder"] else " Add its"
        raise StorageError(
            f"{what} needs {path.replace(':', '.')}, which this process cannot import: {error}."
            f"{origin} folder to PYTHONPATH, or install the package"
        ) from error
    if check and record["source"] and source_digest(value) != record["source"]:
        raise StorageError(
            f"{what} was stored with another source of {path.replace(':', '.')} or of what it "
            "uses, and may predict differently: restore that source, store the model again, or "
            "load it with check_code=False"
        )
    return value


def _resolve(path: str) -> Any:
    module, _, name = path.rpartition(":")
    value: Any = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    return value
