"""Location of the layer that made a step's loss or gradient diverge."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from raysys.errors import TrainError
from raysys.train.strategies._strategy import full_tensor

if TYPE_CHECKING:
    from raysys.train.strategies._strategy import MicroBatch, Strategy

_T = TypeVar("_T")


def divergence_error(
    strategy: Strategy, micro: Sequence[MicroBatch], step: int, fact: str
) -> TrainError:
    """The error that names the step and the layer; called by all workers together.

    The parameters are still those before the step, so the forward pass runs again with a look at
    each layer's output; if all are finite, the gradients are compared.
    """
    # A non-finite output on one worker explains the gradients of all, so it goes first.
    outputs = _from_all_workers(_first_non_finite_output(strategy, micro))
    layer = next(filter(None, outputs), None)
    if layer:
        where = f": the first non-finite output is that of layer {layer}"
    else:
        norms = _from_all_workers(_largest_gradient(strategy))
        norm, layer = max(filter(None, norms), default=(0.0, None))
        what = "is largest at" if math.isfinite(norm) else "is not finite at"
        where = f": the gradient {what} {layer}" if layer else ""
    return TrainError(
        f"step {step}: {fact}{where}. Check that step's examples, lower learning_rate, raise "
        "warmup_ratio, or set max_grad_norm; the checkpoint before it is kept",
        step=step,
        layer=layer,
    )


def _first_non_finite_output(strategy: Strategy, micro: Sequence[MicroBatch]) -> str | None:
    """Name of the first layer, in call order, with a non-finite output."""
    layers: list[str] = []

    def check(name: str, module: torch.nn.Module, inputs: object, output: object) -> None:
        if layers or not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return
        if not torch.isfinite(output.detach()).all():
            layers.append(name)

    handles = [
        module.register_forward_hook(functools.partial(check, name.removeprefix("module.")))
        for name, module in strategy.module.named_modules()
        if name and not list(module.children())
    ]
    try:
        with torch.no_grad():
            for part in micro:
                strategy.forward(part)
    finally:
        for handle in handles:
            handle.remove()
    return layers[0] if layers else None


def _largest_gradient(strategy: Strategy) -> tuple[float, str] | None:
    """Norm and name of the largest gradient; a non-finite one counts as infinite."""
    norms: list[tuple[float, str]] = []
    for name, parameter in strategy.module.named_parameters():
        gradient = strategy.gradient(parameter)
        if gradient is not None:
            norm = float(full_tensor(torch.linalg.vector_norm(gradient)))
            norm = norm if math.isfinite(norm) else math.inf
            norms.append((norm, name.removeprefix("module.")))
    return max(norms, key=lambda pair: pair[0]) if norms else None


def _from_all_workers(value: _T) -> list[_T]:
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
