"""PyTorch modules in the model store: tensors as data, code by import path."""

from __future__ import annotations

import copy
import inspect
import io
import json
import pickle
import pickletools
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.errors import DataError, StorageError
from raysys.identity import check_release
from raysys.imports import lazy_import
from raysys.models._columns import as_array, named_columns, stacked
from raysys.models._importable import code_record, load_code

if TYPE_CHECKING:
    from pathlib import Path

    from torch.nn import Module

torch = lazy_import("torch")
parametrize = lazy_import("torch.nn.utils.parametrize")
serialization = lazy_import("torch.serialization")

_FILE, _METADATA = "module.pt", "module.json"
_lock = threading.Lock()  # torch's list of permitted code is global


def plain_module(module: Module) -> Module:
    """A module without wrappers of `torch.compile` and of data parallelism, and parametrizations.

    Parametrizations, such as `weight_norm`, are replaced by their values in a copy.
    """
    module = getattr(module, "_orig_mod", module)
    if isinstance(module, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        return plain_module(module.module)
    if not any(map(parametrize.is_parametrized, module.modules())):
        return module
    plain = copy.deepcopy(module).eval()
    for part in filter(parametrize.is_parametrized, list(plain.modules())):
        kind = type(part)  # a copy shares its class, which the removal changes
        part.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
        for name in list(part.parametrizations):
            parametrize.remove_parametrizations(part, name)
        part._load_state_dict_pre_hooks.clear()  # theirs
    return plain


def part_of(module: Module, method: str) -> tuple[Module, str]:
    """The part of a module that `method` names, called itself; else the module and its method.

    Raises:
        DataError: The module has neither.
    """
    called = module
    for name in method.split("."):
        called = getattr(called, name, None)
    if not callable(called):
        raise DataError(
            f"{type(module).__name__} has no method or part {method!r}: give method=, one that "
            "predicts a batch"
        )
    return (called, "forward") if isinstance(called, torch.nn.Module) else (module, method)


def module_signature(
    module: Module, method: str, inputs: Sequence[str] | None, classes: Sequence[Any] | None
) -> dict[str, Any]:
    """Signature of a module that is called by a method, which is checked with all its code.

    Args:
        module: Module to store.
        method: Method that predicts a batch.
        inputs: Columns that become one matrix; by default the method's arguments are inputs.
        classes: Classes in the order of the probabilities.

    Raises:
        DataError: The method cannot be called with such inputs, or another process could not
            load the module.
    """
    kind = type(module).__name__
    parameters = inspect.signature(getattr(module, method)).parameters.values()
    required = [
        parameter.name for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]  # fmt: skip
    if not required or (inputs is not None and len(required) > 1):
        expected = "one matrix" if inputs is not None else "a batch"
        raise DataError(
            f"{kind}.{method} requires the arguments {required}, and is called with {expected}: "
            "give the method= that predicts"
        )
    check_storable(module)
    names = required if inputs is None else [str(name) for name in inputs]
    return {"inputs": names, "classes": None if classes is None else list(classes)}


def check_storable(module: Module) -> None:
    """Refuse a module that another process could not load.

    Raises:
        DataError: A part of it is defined in a function or in `__main__`, or has no data form.
    """
    kind = type(module).__name__
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise DataError(f"{kind} is TorchScript: store the module that it was made from")
    if any(isinstance(p, torch.nn.UninitializedParameter) for p in module.parameters()):
        raise DataError(f"{kind} has parameters without a shape: call it with a batch first")
    buffer = io.BytesIO()
    try:
        _TensorlessPickler(buffer, protocol=2, fix_imports=False).dump(module)
    except Exception as error:
        part, reason = _culprit(module), str(error).splitlines()[0]
        raise DataError(
            f"{kind} cannot be stored: {part}: {reason}. Use classes and functions of the top "
            "level of a module that other processes can import, and data"
        ) from error
    operations = pickletools.genops(buffer.getvalue())
    names = [
        str(name).split(" ") for operation, name, _ in operations if operation.name == "GLOBAL"
    ]
    if own := [name for module_name, name in names if module_name == "__main__"]:
        raise DataError(
            f"{kind} cannot be stored: {own[0]} is defined in __main__, a script or notebook that "
            "another process cannot import: move it to a module beside it, and import it; or "
            "store a part of torch's own layers, method='layers'"
        )


def save_module(
    module: Module, folder: Path, *, method: str, signature: Mapping[str, Any], stack: bool
) -> None:
    """Write a module whose signature was checked, and load it once.

    Args:
        module: Module to store. Its tensors are written as data; of its code, the import paths
            and digests of the source.
        folder: Folder to write to.
        method: See `module_signature`.
        signature: Signature of the module.
        stack: Whether the inputs become one matrix.

    Raises:
        DataError: The module cannot be loaded from its files.
    """
    torch.save(module, folder / _FILE)
    names = serialization.get_unsafe_globals_in_checkpoint(folder / _FILE)
    code = {name: code_record(":".join(name.rsplit(".", 1))) for name in sorted(names)}
    metadata = {
        "torch": torch.__version__, "method": method, "signature": signature, "stack": stack,
        "code": code,
    }  # fmt: skip
    (folder / _METADATA).write_text(json.dumps(metadata, indent=1))
    try:
        StoredModule(folder)
    except StorageError as error:
        raise DataError(f"{type(module).__name__} cannot be stored: {error}") from error


class StoredModule:
    """A stored module that predicts batches.

    Attributes:
        inner: The module in evaluation mode, on a GPU if this process has one.
        inputs: Names of the inputs.
        classes: Classes in the order of the probabilities; None without.
    """

    def __init__(self, folder: Path, *, check_code: bool = True) -> None:
        """Load a module written by `save_module`; only code that it names can run.

        Args:
            folder: Folder of the module.
            check_code: Refuse code whose source has changed.

        Raises:
            StorageError: Its code is missing or has changed, or a later torch wrote it.
        """
        metadata = json.loads((folder / _METADATA).read_text())
        what = f"the module at {folder}"
        check_release("torch", metadata["torch"], torch.__version__, what)
        code = [
            (load_code(record, what, check=check_code), name)
            for name, record in metadata["code"].items()
        ]
        if any(name.startswith("numpy.") for name in metadata["code"]):
            code += [
                (getattr(np.dtypes, kind), f"numpy.dtypes.{kind}") for kind in np.dtypes.__all__
            ]
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            with _lock, serialization.safe_globals(code):
                module = torch.load(
                    folder / _FILE, weights_only=True, mmap=True, map_location=self._device
                )
        except Exception as error:
            reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
            raise StorageError(f"cannot load {what}: {' '.join(reason[:1])}") from error
        self.inner: Module = module.eval()
        self._method, self._stack = metadata["method"], metadata["stack"]
        self.inputs: list[str] = metadata["signature"]["inputs"]
        self.classes: list[Any] | None = metadata["signature"]["classes"]
        floating = (p.dtype for p in module.parameters() if p.dtype.is_floating_point)
        self._dtype = next(floating, torch.float32)

    def __call__(self, features: Any) -> np.ndarray:
        """Output of the module's method, an array with a row for each of the batch.

        Args:
            features: Columns by name, `(n, ...)` each; or an array: the matrix `(n, inputs)`, or
                the only input.

        Raises:
            DataError: The features or the output do not fit the signature.
        """
        if self._stack:
            arguments = [stacked(features, self.inputs)]
        elif len(self.inputs) == 1 and not hasattr(features, "keys"):
            arguments = [np.asarray(features)]
        else:
            columns = named_columns(features, self.inputs)
            arguments = [as_array(name, column) for name, column in columns.items()]
        called = self.inner if self._method == "forward" else getattr(self.inner, self._method)
        with torch.inference_mode():
            output = called(*(self._tensor(array) for array in arguments))
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        if isinstance(shape, str) or shape[:1] != (len(arguments[0]),):
            raise DataError(
                f"{type(self.inner).__name__}.{self._method} returned {shape} for "
                f"{len(arguments[0])} rows: store it with the method= that returns a tensor with "
                "a row for each"
            )
        output = output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
        return output.cpu().numpy()

    def _tensor(self, array: np.ndarray) -> Any:
        kind = array.dtype.kind
        if kind not in "fiub":
            raise DataError(
                f"{type(self.inner).__name__} takes numbers, not {array.dtype}: store it with the "
                "featurizer= that encodes the columns"
            )
        dtype = self._dtype if kind == "f" else torch.bool if kind == "b" else torch.int64
        return torch.tensor(array, dtype=dtype, device=self._device)


class _TensorlessPickler(pickle.Pickler):
    """Pickles the structure of a module alone."""

    def persistent_id(self, item: Any) -> Any:
        return "tensor" if isinstance(item, torch.Tensor) else None


def _culprit(module: Module) -> str:
    """The part of a module that cannot be pickled."""
    for name, part in module.named_modules():
        where = f"its part {name} ({type(part).__name__})" if name else type(part).__name__
        for key, value in vars(part).items():
            if key in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                _TensorlessPickler(io.BytesIO(), protocol=2).dump(value)
            except Exception:
                return f"the attribute {key!r} of {where}"
        if "<locals>" in type(part).__qualname__:
            return where
    return type(module).__name__
