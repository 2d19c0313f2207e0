"""The module of a training run as a file: its structure, without the values that training sets."""

from __future__ import annotations

import io
import logging
import pickle
from typing import TYPE_CHECKING, Any

import cloudpickle

from raysys.imports import lazy_import

if TYPE_CHECKING:
    from torch.nn import Module

    from raysys.train._run_state import RunState
    from raysys.train._task import StateDict

torch = lazy_import("torch")

_FILE = "module.pickle"
_log = logging.getLogger("raysys.train")


def write_module(state: RunState, module: Module) -> None:
    """Write the structure of a module, if it can be pickled."""
    names: dict[int, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), name)

    class ModulePickler(cloudpickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            if not isinstance(item, torch.Tensor) or id(item) not in names:
                return None
            return names[id(item)], isinstance(item, torch.nn.Parameter), item.requires_grad

    buffer = io.BytesIO()
    try:
        ModulePickler(buffer, protocol=5).dump(module)
    except Exception as error:  # whatever the module contains: training needs no such file
        _log.info("%s is not stored with its run: %s", type(module).__name__, error)
    else:
        state.storage.write_signed(f"{state.folder}/{_FILE}", buffer.getvalue())


def read_module(state: RunState, parameters: StateDict) -> Module | None:
    """The module with these parameters and buffers; None if it could not be pickled."""
    data = state.storage.read_signed(f"{state.folder}/{_FILE}")
    if data is None:
        return None
    tensors: dict[str, Any] = {}

    class ModuleUnpickler(pickle.Unpickler):
        def persistent_load(self, persistent: Any) -> Any:
            name, is_parameter, requires_grad = persistent
            if name not in tensors:
                value = parameters[name]
                tensors[name] = torch.nn.Parameter(value, requires_grad) if is_parameter else value
            return tensors[name]

    module = ModuleUnpickler(io.BytesIO(data)).load()
    module.load_state_dict(parameters, strict=False)  # what else it reads from its state
    return module.eval()
