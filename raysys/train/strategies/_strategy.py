"""A module and its optimizer in one worker: the interface of every strategy, and one device."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from raysys.train._optimizers import STATE_KEYS, make_optimizer

if TYPE_CHECKING:
    from raysys.train._settings import TrainSettings
    from raysys.train._task import Batch, StateDict

# A parameter in the form of any strategy: "value" and the optimizer's tensors by their names
# ("exp_avg", ...), full and on the CPU. A buffer has its "value" alone.
TensorState = dict[str, torch.Tensor]


class NotFiniteError(Exception):
    """A step's loss or gradient is not finite, or too large; the step was not taken."""


@dataclass(frozen=True)
class MicroBatch:
    """A batch for one forward pass.

    Attributes:
        batch: Arguments of `forward`, on the worker's device.
        weight: Weight of its mean loss in the worker's, such that the mean over the workers is
            the mean over the global batch, for any sizes of shards and micro-batches.
    """

    batch: Batch
    weight: float


class Strategy(ABC):
    """A module and its optimizer in one worker of many.

    Workers call every method together, with the same arguments except for the batches.

    Attributes:
        module: The module, to switch between training and evaluation.
        inner: The module without wrappers, for its parameters and buffers.
        data_shard: Index of this worker's shard of each global batch, and number of shards.
        grad_norm: 2-norm of the full gradient of the last step, before it was clipped; None
            unless `max_grad_norm` or `max_grad_norm_ratio` is set.
        grad_norm_limit: Largest norm at which a step is taken.
    """

    module: torch.nn.Module
    inner: torch.nn.Module
    data_shard: tuple[int, int]
    grad_norm: float | None = None
    grad_norm_limit: float = math.inf

    def __init__(self, settings: TrainSettings, device: str) -> None:
        self.settings, self.device = settings, device
        self._autocast = autocast(settings, device)

    @abstractmethod
    def step(self, micro: Sequence[MicroBatch], learning_rate: float) -> float:
        """Take one optimizer step with the micro-batches of this worker's shard.

        Returns:
            The loss of the global batch, the same on all workers.

        Raises:
            NotFiniteError: The loss or the gradient is not finite, or above `grad_norm_limit`, on
                all workers alike; the parameters are those before the step.
        """

    def forward(self, part: MicroBatch) -> torch.Tensor:
        """The weighted loss of a micro-batch; None on the inner stages of a pipeline."""
        with self._autocast():
            return self.module(**part.batch) * part.weight

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """A parameter's gradient after a refused step."""
        return parameter.grad

    def check_finite(self, loss: float) -> None:
        """Refuse a step by its loss and gradient norm, which are the same on all workers."""
        if not math.isfinite(loss):
            raise NotFiniteError(f"the loss is {loss}")
        if self.grad_norm is not None and not self.grad_norm <= self.grad_norm_limit:
            finite = math.isfinite(self.grad_norm)
            usual = f", more than {self.grad_norm_limit:.4g}" if finite else ""
            raise NotFiniteError(f"the norm of the gradient is {self.grad_norm:.4g}{usual}")

    def tensor_states(self) -> Iterator[tuple[str, TensorState]]:
        """The part of the state that this worker writes to a checkpoint, one tensor at a time.

        All workers together yield every tensor once. A yielded tensor may be in use: copy it.
        """
        mine = shards_of(self.inner, self.data_shard[1])[self.data_shard[0]]
        for name, tensor in tensors_of(self.inner).items():
            state = self._tensor_state(tensor)  # all workers take part in gathering a sharded one
            if name in mine:
                yield name, state

    @abstractmethod
    def _tensor_state(self, tensor: torch.Tensor) -> TensorState:
        """State of a parameter or buffer."""

    @abstractmethod
    def load_tensor_states(self, read: Callable[[str], TensorState], steps: int) -> None:
        """Restore the `tensor_states` of any strategy, after `steps` optimizer steps."""

    def full_state_dict(self) -> StateDict:
        """Parameters and buffers of the full module on rank 0; empty on the other workers."""
        parameters = {name: self._full(tensor) for name, tensor in tensors_of(self.inner).items()}
        return parameters if self.data_shard[0] == 0 else {}

    def _full(self, tensor: torch.Tensor) -> torch.Tensor:
        return full_tensor(tensor)


class SingleDeviceStrategy(Strategy):
    """One process without communication, and the base of those with a local optimizer."""

    def __init__(self, module: torch.nn.Module, settings: TrainSettings, device: str) -> None:
        super().__init__(settings, device)
        self.module = self.inner = module.to(device)
        self.data_shard = (0, 1)

    def start(self) -> None:
        """Make the optimizer, once the parameters are in their final place."""
        self.optimizer = make_optimizer(self.inner.named_parameters(), self.settings)

    def step(self, micro: Sequence[MicroBatch], learning_rate: float) -> float:
        total = torch.zeros((), device=self.device)
        for at, part in enumerate(micro):
            last = at == len(micro) - 1
            with self._synchronizing(last):
                loss = self.forward(part)
                total += loss.detach()
                if last:
                    mean = self._mean(total)
                loss.backward()
        result = mean()
        self._clip()
        self._take_step(result, learning_rate)
        return result

    def _take_step(self, loss: float, learning_rate: float) -> None:
        self.check_finite(loss)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _clip(self) -> None:
        settings = self.settings
        if settings.max_grad_norm or settings.max_grad_norm_ratio:
            limit = settings.max_grad_norm or math.inf
            norm = torch.nn.utils.clip_grad_norm_(self.inner.parameters(), limit)
            self.grad_norm = float(full_tensor(norm))

    def _tensor_state(self, tensor: torch.Tensor) -> TensorState:
        stored = self.optimizer.state.get(tensor, {})
        keys = [key for key in STATE_KEYS[self.settings.optimizer] if key in stored]
        return {"value": full_tensor(tensor)} | {key: full_tensor(stored[key]) for key in keys}

    def load_tensor_states(self, read: Callable[[str], TensorState], steps: int) -> None:
        for name, tensor in tensors_of(self.inner).items():
            state = read(name)
            with torch.no_grad():
                copy_full(tensor, state.pop("value"))
            if state:
                restored: dict[str, Any] = {"step": torch.tensor(float(steps))}
                for key, value in state.items():
                    restored[key] = torch.zeros_like(tensor, dtype=value.dtype)
                    copy_full(restored[key], value)
                self.optimizer.state[tensor] = restored

    def _mean(self, loss: torch.Tensor) -> Callable[[], float]:
        """Begin to average a loss over the workers; returns a function that waits for it."""
        return lambda: float(loss)

    def _synchronizing(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Context that exchanges gradients in the last micro-batch of a step only."""
        return contextlib.nullcontext()


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and saved buffers by name; a shared one by its first name only."""
    tensors = module.state_dict(keep_vars=True)
    aliases = aliases_of(module)
    return {name: tensor for name, tensor in tensors.items() if name not in aliases}


def aliases_of(module: torch.nn.Module) -> dict[str, str]:
    """Further names of shared tensors, with the first name."""
    first: dict[int, str] = {}
    return {
        name: first[id(tensor)]
        for name, tensor in module.state_dict(keep_vars=True).items()
        if first.setdefault(id(tensor), name) != name
    }


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


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, gathered if it is sharded, detached and on the CPU."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def copy_full(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a full tensor into one that may be sharded."""
    if isinstance(target, DTensor):
        source = distribute_tensor(
            source.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
    target.detach().copy_(source)


def autocast(
    settings: TrainSettings, device: str
) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Context of the forward pass: bfloat16 where it is set, or with "auto" where it pays."""
    kind = device.partition(":")[0]
    auto_bf16 = settings.precision == "auto" and kind == "cuda" and torch.cuda.is_bf16_supported()
    if settings.precision == "bf16" or auto_bf16:
        return lambda: torch.autocast(kind, dtype=torch.bfloat16)
    return contextlib.nullcontext
