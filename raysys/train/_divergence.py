"""Which layer is to blame when a step's loss or gradient is not finite, or explodes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from raysys.errors import TrainError
from raysys.train.strategies._base import whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.train.strategies._base import MicroBatch, Replica

_T = TypeVar("_T")


def suspect(replica: Replica, micro: Sequence[MicroBatch], step: int, fact: str) -> TrainError:
    """The error that names the step and the layer; called by all workers together.

    The parameters are still those before the step, so the forward pass is run once more and each
    layer's output looked at; if all are finite, the gradients are.
    """
    # An output that is not finite on one worker explains the gradients of all, so it goes first.
    found = _first(_first_output(replica, micro)) or _worst(_largest_gradient(replica))
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


def _largest_gradient(replica: Replica) -> tuple[float, str] | None:
    """Norm and name of the largest gradient; infinite where one is not finite."""
    found: list[tuple[float, str]] = []
    for name, parameter in replica.module.named_parameters():
        gradient = replica.gradient(parameter)
        if gradient is not None:
            norm = float(whole(torch.linalg.vector_norm(gradient)))
            norm = norm if math.isfinite(norm) else math.inf
            found.append((norm, name.removeprefix("module.")))
    return max(found, key=lambda one: one[0]) if found else None


def _first(found: str | None) -> str | None:
    """What the first worker found that found something."""
    return next((one for one in _gathered(found) if one), None)


def _worst(found: tuple[float, str] | None) -> str | None:
    norm, name = max(filter(None, _gathered(found)), default=(0.0, ""))
    if not name:
        return None
    what = "is largest at" if math.isfinite(norm) else "is not finite at"
    return f"the gradient {what} {name}"


def _gathered(found: _T) -> list[_T]:
    """What every worker found."""
    if not dist.is_initialized():
        return [found]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    return everyone


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all()) if tensor.is_floating_point() else True
