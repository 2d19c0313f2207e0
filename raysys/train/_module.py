"""The module of a task: how it is built, its tensors and extra state by name."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raysys.errors import TrainError
from raysys.train._failures import certain_errors, task_errors

if TYPE_CHECKING:
    from raysys.train._settings import StrategyName, TrainSettings
    from raysys.train._task import StateDict, TrainingTask

_EXTRA_STATE = torch.nn.modules.module._EXTRA_STATE_KEY_SUFFIX


def built_module(task: TrainingTask, seed: int, examples: int) -> torch.nn.Module:
    """The module of a prepared task, its parameters drawn with `seed`.

    Those of lazy layers get their shapes from a batch of one or two of the `examples`.

    Raises:
        TrainError: `build` fails or returns no module, or lazy layers reject the batch.
    """
    torch.manual_seed(seed)
    with task_errors(task, "build"):
        module = task.build()
    if not isinstance(module, torch.nn.Module):
        raise TrainError(
            f"{type(task).__name__}.build returned {type(module).__name__}: return a "
            "torch.nn.Module"
        )
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in tensors_of(module).values()):
        with task_errors(task, "batch"):
            batch = task.batch(np.arange(min(2, examples)), np.random.default_rng(seed))
        with certain_errors(f"{type(module).__name__} with lazy layers"), torch.no_grad():
            module.eval()(**batch)
        module.train()
    return module


def module_with(task: TrainingTask, parameters: StateDict) -> torch.nn.Module:
    """A plain module with these parameters, in evaluation mode."""
    module = task.build()
    aliases = aliases_of(module)
    module.load_state_dict(parameters | {alias: parameters[aliases[alias]] for alias in aliases})
    return module.eval()


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and saved buffers by name; a shared one by its first name only."""
    aliases = aliases_of(module)
    return {name: tensor for name, tensor in _state(module).items() if name not in aliases}


def aliases_of(module: torch.nn.Module) -> dict[str, str]:
    """Further names of shared tensors, with the first name."""
    first: dict[int, str] = {}
    return {
        name: first[id(tensor)]
        for name, tensor in _state(module).items()
        if first.setdefault(id(tensor), name) != name
    }


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = module.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if name.split(".")[-1] != _EXTRA_STATE}


def extra_state_of(module: torch.nn.Module) -> dict[str, Any]:
    """Results of the layers' `get_extra_state` by name in the `state_dict`."""
    return {
        f"{name}.{_EXTRA_STATE}" if name else _EXTRA_STATE: layer.get_extra_state()
        for name, layer in module.named_modules()
        if type(layer).get_extra_state is not torch.nn.Module.get_extra_state
    }


def check_extra_state(module: torch.nn.Module) -> None:
    """Refuse extra state that a checkpoint would not give back.

    Raises:
        TrainError: It holds other objects than tensors, numbers, text, lists and dicts.
    """
    for name, state in extra_state_of(module).items():
        file = io.BytesIO()
        try:
            torch.save(state, file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception as error:
            raise TrainError(
                f"{name} of {type(module).__name__} is {type(state).__name__}, which checkpoints "
                "do not store: let get_extra_state return tensors, numbers, text, lists and dicts"
            ) from error


def load_extra_state(module: torch.nn.Module, states: Mapping[str, Any]) -> None:
    """Give the layers their `extra_state_of`."""
    for name, state in states.items():
        module.get_submodule(name.removesuffix(_EXTRA_STATE).removesuffix(".")).set_extra_state(
            state
        )


def sparse_parameters(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Parameters with sparse gradients by name: of embeddings with `sparse=True`."""
    embeddings = (torch.nn.Embedding, torch.nn.EmbeddingBag)
    return {
        f"{name}.weight".lstrip("."): layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, embeddings) and layer.sparse and layer.weight.requires_grad
    }


def check_sparse(module: torch.nn.Module, settings: TrainSettings, strategy: StrategyName) -> None:
    """Refuse settings under which parameters with sparse gradients cannot be trained.

    Raises:
        TrainError: Another optimizer than AdamW and SGD, another strategy than DDP, or clipping.
    """
    sparse = next(iter(sparse_parameters(module)), None)
    if sparse is None:
        return
    fact = None
    if strategy != "ddp":
        fact = f"strategy={strategy!r}"
    elif settings.optimizer not in ("adamw", "sgd"):
        fact = f"optimizer={settings.optimizer!r}"
    elif settings.max_grad_norm or settings.max_grad_norm_ratio:
        fact = "max_grad_norm or max_grad_norm_ratio"
    elif settings.gradient_compression != "none":
        fact = f"gradient_compression={settings.gradient_compression!r}"
    if fact:
        raise TrainError(
            f"{sparse} has sparse gradients, which {fact} does not support: leave that out (ddp "
            "with adamw or sgd trains them), or build the embedding with sparse=False"
        )


def shards_of(module: torch.nn.Module, count: int) -> list[set[str]]:
    """Names of the tensors in `count` shards of nearly equal bytes.

    Buffers are in the first: where the workers' differ, as running statistics do, its own count.
    """
    tensors = tensors_of(module)
    parameters = {name: t for name, t in tensors.items() if isinstance(t, torch.nn.Parameter)}
    shards: list[set[str]] = [set() for _ in range(count)]
    shards[0] |= tensors.keys() - parameters.keys()
    sizes = [0] * count
    for name in sorted(parameters, key=lambda name: -_numel(parameters[name])):
        smallest = sizes.index(min(sizes))
        shards[smallest].add(name)
        sizes[smallest] += _numel(parameters[name])
    return shards


def _numel(tensor: torch.Tensor) -> int:
    """Elements of the full tensor, also of a parameter that ZeRO has partitioned."""
    return int(getattr(tensor, "ds_numel", tensor.numel()))
