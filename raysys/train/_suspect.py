"""Which layer is to blame when a step's loss or gradient is not finite, or explodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from raysys.errors import TrainError
from raysys.train._replica import whole

if TYPE_CHECKING:
    from raysys.train._replica import MicroBatch, Replica


def suspect(replica: Replica, micro: Sequence[MicroBatch], step: int, fact: str) -> TrainError:
    """The error that names the step and the layer; called by all workers together.

    The parameters are still those before the step, so the forward pass is run once more and each
    layer's output looked at; if all are finite, the gradients are.
    """
    found = _first_output(replica, micro) or _gradients(replica)
    if dist.is_initialized():
        everyone: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, found)
        found = next((one for one in everyone if one), None)
    layer = found.split(" ")[-1] if found else None
    where = f": {found}" if found else ""
    return TrainError(
        f"step {step}: {fact}{where}. Look at that step's examples, lower learning_rate, lengthen "
        "warmup, or set clip_norm; the checkpoint before it is kept",
        step=step,
        layer=layer,
    )


def _first_output(replica: Replica, micro: Sequence[MicroBatch]) -> str | None:
    """The first layer, in the order of their calls, that gives something not finite."""
    first: list[str] = []
    handles = []

    def hook(name: str):  # type: ignore[no-untyped-def]
        def look(module: torch.nn.Module, inputs: object, output: object) -> None:
            if not first and isinstance(output, torch.Tensor) and not _finite(output):
                first.append(name)

        return look

    for name, module in replica.module.named_modules():
        if name and not list(module.children()):
            handles.append(module.register_forward_hook(hook(name.removeprefix("module."))))
    try:
        with torch.no_grad():
            for part in micro:
                replica.forward(part)
    finally:
        for handle in handles:
            handle.remove()
    return f"the first output that is not finite is that of layer {first[0]}" if first else None


def _gradients(replica: Replica) -> str | None:
    """The parameter whose gradient is not finite, else the one with the largest."""
    norms: dict[str, float] = {}
    for name, parameter in replica.module.named_parameters():
        gradient = replica.gradient(parameter)
        if gradient is None:
            continue
        name = name.removeprefix("module.")
        norms[name] = float(whole(torch.linalg.vector_norm(gradient)))
        if norms[name] != norms[name] or norms[name] == float("inf"):
            return f"the gradient is not finite at {name}"
    if not norms:
        return None
    return f"the gradient is largest at {max(norms, key=lambda name: norms[name])}"


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all()) if tensor.is_floating_point() else True
