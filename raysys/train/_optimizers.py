"""Optimizers by name, among them LARS and LAMB."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.optim import Optimizer

if TYPE_CHECKING:
    from raysys.train._settings import OptimizerName, TrainSettings

# State tensors of a parameter's shape; without momentum there is no buffer.
STATE_KEYS: dict[OptimizerName, tuple[str, ...]] = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
    "lars": ("momentum_buffer",),
    "lamb": ("exp_avg", "exp_avg_sq"),
}


def make_optimizer(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    settings: TrainSettings,
    sparse: Collection[str] = (),
) -> Optimizer:
    """The optimizer of a module.

    AdamW and SGD are PyTorch's own and decay all parameters, which may be DTensors; LARS and LAMB
    decay those of two dimensions and more. Parameters named in `sparse` have sparse gradients:
    they do not decay, and beside AdamW they are SparseAdam's.
    """
    named = dict(named_parameters)
    parameters = [parameter for name, parameter in named.items() if name not in sparse]
    sparse_parameters = [named[name] for name in sparse]
    rates = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        # On CPUs the fused one takes a third of the time. On GPUs the choice is PyTorch's.
        fused = True if all(p.device.type == "cpu" for p in parameters) else None
        adams: list[Optimizer] = []
        if parameters:
            adams.append(torch.optim.AdamW(parameters, fused=fused, **rates))
        if sparse_parameters:
            adams.append(torch.optim.SparseAdam(sparse_parameters, lr=settings.learning_rate))
        return adams[0] if len(adams) == 1 else _Chained(adams)
    if settings.optimizer == "sgd":
        groups: list[dict[str, Any]] = [{"params": parameters}] if parameters else []
        if sparse_parameters:
            groups.append({"params": sparse_parameters, "weight_decay": 0.0})
        return torch.optim.SGD(groups, momentum=settings.momentum, **rates)
    if settings.optimizer == "lars":
        return LARS(parameters, {**rates, "momentum": settings.momentum, "trust": 1e-3})
    return LAMB(parameters, {**rates, "betas": (0.9, 0.999), "eps": 1e-6})


class _Chained(Optimizer):
    """Optimizers of different parameters as one."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers
        super().__init__([group for o in optimizers for group in o.param_groups], {})
        for optimizer in optimizers:
            optimizer.state = self.state

    def step(self) -> None:
        """Take one step with the current gradients."""
        for optimizer in self._optimizers:
            optimizer.step()


class _LayerWise(Optimizer):
    """A trust ratio for each weight, by its norm; 1 for biases and scales, which do not decay."""

    @torch.no_grad()
    def step(self) -> None:
        """Take one step with the current gradients."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = [self._unscaled(p, group) for p in parameters]
            weights = [at for at, p in enumerate(parameters) if p.ndim > 1]
            # All at once, since norms of sharded tensors cross the network.
            norms = _norms([parameters[at] for at in weights] + [updates[at] for at in weights])
            ratios, count = [1.0] * len(parameters), len(weights)
            for at, norm, update_norm in zip(weights, norms[:count], norms[count:], strict=True):
                if norm > 0 and update_norm > 0:
                    ratios[at] = self._ratio(norm, update_norm, group)
            for parameter, update, ratio in zip(parameters, updates, ratios, strict=True):
                self._apply(parameter, update, group["lr"] * ratio, group)

    @abstractmethod
    def _unscaled(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """The update to compare with the weight's norm."""

    @abstractmethod
    def _ratio(self, norm: float, update_norm: float, group: dict[str, Any]) -> float:
        """Trust ratio of a weight and its update with these norms, neither of them 0."""

    @abstractmethod
    def _apply(
        self, parameter: torch.Tensor, update: torch.Tensor, rate: float, group: dict[str, Any]
    ) -> None:
        """Move a parameter at its own rate."""


class LARS(_LayerWise):
    """Layer-wise rates for SGD with momentum.

    Algorithm 1 of You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks",
    2017. A weight moves by about `trust` of its norm times the learning rate in a step, so that
    rates are large: 1 to 30.
    """

    def _unscaled(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        assert parameter.grad is not None
        return parameter.grad

    def _ratio(self, norm: float, update_norm: float, group: dict[str, Any]) -> float:
        return float(group["trust"] * norm / (update_norm + group["weight_decay"] * norm))

    def _apply(
        self, parameter: torch.Tensor, update: torch.Tensor, rate: float, group: dict[str, Any]
    ) -> None:
        step = update.add(parameter, alpha=_decay(parameter, group)).mul_(rate)
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

    def _unscaled(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        assert parameter.grad is not None
        state, (first, second) = self.state[parameter], group["betas"]
        if "step" not in state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        count = int(state["step"])
        state["exp_avg"].mul_(first).add_(parameter.grad, alpha=1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
        spread = state["exp_avg_sq"].div(1 - second**count).sqrt_().add_(group["eps"])
        step = state["exp_avg"].div(spread).div_(1 - first**count)
        return step.add_(parameter, alpha=_decay(parameter, group))

    def _ratio(self, norm: float, update_norm: float, group: dict[str, Any]) -> float:
        return norm / update_norm

    def _apply(
        self, parameter: torch.Tensor, update: torch.Tensor, rate: float, group: dict[str, Any]
    ) -> None:
        parameter.sub_(update, alpha=rate)


def _decay(parameter: torch.Tensor, group: dict[str, Any]) -> float:
    return float(group["weight_decay"]) if parameter.ndim > 1 else 0.0


def _norms(tensors: Sequence[torch.Tensor]) -> list[float]:
    """2-norms, of the full tensor where one is sharded; all workers call it together."""
    by_layout: dict[Any, list[int]] = defaultdict(list)
    for at, tensor in enumerate(tensors):
        sharded = isinstance(tensor, DTensor)
        layout = (tensor.device_mesh, tensor.placements) if sharded else tensor.device
        by_layout[layout].append(at)
    results = [0.0] * len(tensors)
    for layout, places in by_layout.items():
        if isinstance(layout, torch.device):
            norms = torch.stack(torch._foreach_norm([tensors[at] for at in places]))
        else:
            mesh, placements = layout
            parts = [tensors[at].to_local() for at in places]
            squares = torch.stack(torch._foreach_norm(parts)).square()
            summed = [Replicate() if p.is_replicate() else Partial() for p in placements]
            norms = DTensor.from_local(squares, mesh, summed).full_tensor().sqrt()
        for at, norm in zip(places, norms.tolist(), strict=True):
            results[at] = norm
    return results
