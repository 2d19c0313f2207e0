"""Optimizers by name, among them those that give each layer a rate of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from raysys.train._settings import OptimizerName

# What an optimizer keeps of a parameter, in its shape; without momentum there is no buffer.
STATE_KEYS: dict[OptimizerName, tuple[str, ...]] = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
    "lars": ("momentum_buffer",),
    "lamb": ("exp_avg", "exp_avg_sq"),
}


def make_optimizer(
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    kind: OptimizerName,
    learning_rate: float,
    weight_decay: float,
    momentum: float,
) -> Optimizer:
    """The optimizer of a module's `named_parameters`.

    Args:
        parameters: Names and parameters, which may be spread as DTensors.
        kind: AdamW and SGD are PyTorch's own and decay all parameters; `LARS` and `LAMB` decay
            those of two dimensions and more.
        learning_rate: Until the loop sets another.
        weight_decay: Of all kinds.
        momentum: Of sgd and lars.
    """
    held = [parameter for _, parameter in parameters]
    if kind == "adamw":
        # On CPUs the fused one takes a third of the time. On GPUs PyTorch's choice is left to it.
        fused = True if all(one.device.type == "cpu" for one in held) else None
        return torch.optim.AdamW(held, lr=learning_rate, weight_decay=weight_decay, fused=fused)
    if kind == "sgd":
        return torch.optim.SGD(held, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
    if kind == "lars":
        return LARS(held, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
    return LAMB(held, lr=learning_rate, weight_decay=weight_decay)


class _LayerWise(Optimizer):
    """A trust ratio for each weight, by its norm; 1 for biases and scales, which do not decay."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step with the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            held = [one for one in group["params"] if one.grad is not None]
            steps = [self._unscaled(one, group) for one in held]
            weights = [at for at, one in enumerate(held) if one.ndim > 1]
            # Of all at once, since norms of what is spread must cross the network.
            norms = _norms([held[at] for at in weights] + [steps[at] for at in weights])
            ratios = [1.0] * len(held)
            for at, norm, of_step in zip(
                weights, norms[: len(weights)], norms[len(weights) :], strict=True
            ):
                if norm > 0 and of_step > 0:
                    ratios[at] = self._ratio(norm, of_step, group)
            for one, unscaled, ratio in zip(held, steps, ratios, strict=True):
                self._apply(one, unscaled, group["lr"] * ratio, group)
        return loss

    @abstractmethod
    def _unscaled(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """What the weight's norm is held against."""

    @abstractmethod
    def _ratio(self, norm: float, of_step: float, group: dict[str, Any]) -> float:
        """The trust ratio of a weight and `_unscaled` with these norms, neither of them 0."""

    @abstractmethod
    def _apply(
        self, parameter: torch.Tensor, unscaled: torch.Tensor, rate: float, group: dict[str, Any]
    ) -> None:
        """Move a parameter at the rate that is its own."""


class LARS(_LayerWise):
    """Layer-wise rates for SGD with momentum.

    Algorithm 1 of You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks",
    2017. A weight moves by about `trust` of its norm times the learning rate in a step, so that
    rates are large: 1 to 30.
    """

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(parameters, defaults)

    def _unscaled(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        assert parameter.grad is not None
        return parameter.grad

    def _ratio(self, norm: float, of_step: float, group: dict[str, Any]) -> float:
        return float(group["trust"] * norm / (of_step + group["weight_decay"] * norm))

    def _apply(
        self, parameter: torch.Tensor, unscaled: torch.Tensor, rate: float, group: dict[str, Any]
    ) -> None:
        step = unscaled.add(parameter, alpha=_decay(parameter, group)).mul_(rate)
        if group["momentum"]:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            step = state["momentum_buffer"].mul_(group["momentum"]).add_(step)
        parameter.sub_(step)


class LAMB(_LayerWise):
    """Layer-wise rates for Adam.

    Algorithm 2 of You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76
    minutes", 2020, with the identity for its function of the norm.
    """

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    def _unscaled(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        assert parameter.grad is not None
        state, (first, second) = self.state[parameter], group["betas"]
        if "step" not in state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        taken = int(state["step"])
        state["exp_avg"].mul_(first).add_(parameter.grad, alpha=1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
        spread = state["exp_avg_sq"].div(1 - second**taken).sqrt_().add_(group["eps"])
        step = state["exp_avg"].div(spread).div_(1 - first**taken)
        return step.add_(parameter, alpha=_decay(parameter, group))

    def _ratio(self, norm: float, of_step: float, group: dict[str, Any]) -> float:
        return norm / of_step

    def _apply(
        self, parameter: torch.Tensor, unscaled: torch.Tensor, rate: float, group: dict[str, Any]
    ) -> None:
        parameter.sub_(unscaled, alpha=rate)


def _decay(parameter: torch.Tensor, group: dict[str, Any]) -> float:
    return float(group["weight_decay"]) if parameter.ndim > 1 else 0.0


def _norms(tensors: Sequence[torch.Tensor]) -> list[float]:
    """2-norms, of the whole where a tensor is spread; all workers call it together."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    found = [0.0] * len(tensors)
    alike: dict[Any, list[int]] = defaultdict(list)
    for at, one in enumerate(tensors):
        spread = (one.device_mesh, one.placements) if isinstance(one, DTensor) else one.device
        alike[spread].append(at)
    for spread, places in alike.items():
        if isinstance(spread, torch.device):
            norms = torch.stack(torch._foreach_norm([tensors[at] for at in places]))
        else:
            mesh, placements = spread
            parts = [tensors[at].to_local() for at in places]
            squares = torch.stack(torch._foreach_norm(parts)).square()
            summed = [Replicate() if one.is_replicate() else Partial() for one in placements]
            norms = DTensor.from_local(squares, mesh, summed).full_tensor().sqrt()
        for at, norm in zip(places, norms.tolist(), strict=True):
            found[at] = norm
    return found
