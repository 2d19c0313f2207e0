"""Repeated layers of a module, and activation checkpointing of each."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from raysys.train._task import Batch


def blocks(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a module that can be gathered, or recomputed, one by one.

    They are the children of its outermost `nn.Sequential`s and `nn.ModuleList`s that have
    parameters, are called (a list in a list is not, its children are), and share no parameter
    with the rest of the module: a shared one belongs to no layer.

    Returns:
        Names and layers in the module's order, each layer once.
    """
    names: dict[nn.Module, str] = {}
    for name, child in _candidates(module, "", inside=False):
        names.setdefault(child, name)
    within = {inner for child in names for inner in child.modules()}
    owners = Counter(id(parameter) for child in names for parameter in child.parameters())
    owners.update(
        id(parameter)
        for outer in module.modules()
        if outer not in within
        for parameter in outer.parameters(recurse=False)
    )
    return [
        (name, child)
        for child, name in names.items()
        if {owners[id(parameter)] for parameter in child.parameters()} == {1}
    ]


def _candidates(module: nn.Module, prefix: str, *, inside: bool) -> Iterator[tuple[str, nn.Module]]:
    inside = inside or isinstance(module, nn.Sequential | nn.ModuleList)
    for name, child in module.named_children():
        # A module without a forward of its own is a mere list.
        if inside and type(child).forward is not nn.Module.forward:
            yield prefix + name, child
        else:
            yield from _candidates(child, f"{prefix}{name}.", inside=inside)


def apply_activation_checkpointing(module: nn.Module) -> None:
    """Make each block keep its inputs alone, and recompute the rest in the backward pass.

    The second pass draws the same random numbers, so that gradients stay the same (Chen et al.,
    "Training Deep Nets with Sublinear Memory Cost", 2016). Names, hooks on the block, and its
    output in evaluation do not change. A module without blocks does not change.
    """
    for _, block in blocks(module):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def activation_bytes(module: nn.Module, batch: Batch) -> int:
    """Bytes that a forward pass keeps for the backward pass, beside parameters and buffers.

    Inputs that it keeps count; storages that several tensors view count once. What a checkpointed
    block recomputes does not count: the backward pass has that of one block at a time. The module
    is called once in its current mode.
    """
    own = [*module.parameters(), *module.buffers()]
    own_storages = {tensor.untyped_storage().data_ptr() for tensor in own}
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own_storages:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = module(**batch)
    del loss  # until here it keeps the tensors alive, so that no storage is reused
    return sum(sizes.values())
