"""A module's repeated layers: found, and made to keep less for the backward pass."""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raysys.train._task import Batch


def blocks(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a module that can be gathered, or recomputed, one by one.

    They are the children of its outermost `nn.Sequential`s and `nn.ModuleList`s, as far as they
    hold parameters, are called (a list in a list is not, its children are), and share none with
    the rest of the module: what is shared belongs to no layer.

    Returns:
        Names and layers in the module's order, each layer once.
    """
    found: dict[nn.Module, str] = {}
    for name, child in _candidates(module, "", inside=False):
        found.setdefault(child, name)
    within = {inner for child in found for inner in child.modules()}
    owners = Counter(id(one) for child in found for one in child.parameters())
    owners.update(
        id(one)
        for outer in module.modules()
        if outer not in within
        for one in outer.parameters(recurse=False)
    )
    return [
        (name, child)
        for child, name in found.items()
        if {owners[id(one)] for one in child.parameters()} == {1}
    ]


def _candidates(module: nn.Module, prefix: str, *, inside: bool) -> Iterator[tuple[str, nn.Module]]:
    inside = inside or isinstance(module, nn.Sequential | nn.ModuleList)
    for name, child in module.named_children():
        # A module without a forward of its own is a mere list.
        if inside and type(child).forward is not nn.Module.forward:
            yield prefix + name, child
        else:
            yield from _candidates(child, f"{prefix}{name}.", inside=inside)


def checkpoint_activations(module: nn.Module) -> None:
    """Make each block keep its inputs alone, and compute the rest again in the backward pass.

    The second time draws what the first drew, so that gradients stay the same (Chen et al.,
    "Training Deep Nets with Sublinear Memory Cost", 2016). Names, hooks on the block, and what
    it gives in evaluation stay as they are. A module without blocks stays as it is.
    """
    from torch.utils.checkpoint import checkpoint

    for _, block in blocks(module):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def activation_bytes(module: nn.Module, batch: Batch) -> int:
    """Bytes that a forward pass keeps for the backward pass, beside parameters and buffers.

    Inputs that it keeps count, storages that several tensors view count once. What a checkpointed
    block computes again is not among them: backward holds that of one block at a time.

    Args:
        module: Called once, in the mode that it is in.
        batch: The arguments of its `forward`.
    """
    held = [*module.parameters(), *module.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in held}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = module(**batch)
    del loss  # until here it holds what was kept, so that no storage is another's successor
    return sum(kept.values())
