"""A module and its optimizer in one worker: the interface of every strategy, and one device."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from raysys.errors import TrainError
from raysys.train._module import (
    check_sparse,
    extra_state_of,
    shards_of,
    sparse_parameters,
    tensors_of,
)
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

    @property
    def offloads(self) -> bool:
        """Whether state is in the host's memory instead of the device's."""
        return self.settings.cpu_offload and not self.device.startswith("cpu")

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
            return _mean_loss(self.inner, self.module(**part.batch)) * part.weight

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

    def extra_state(self) -> dict[str, Any]:
        """Extra state of the layers, by name in the `state_dict`."""
        return extra_state_of(self.inner)

    @abstractmethod
    def load_tensor_states(self, read: Callable[[str], TensorState], steps: int) -> None:
        """Restore the `tensor_states` of any strategy, after `steps` optimizer steps."""

    def full_state_dict(self) -> StateDict:
        """The `state_dict` of the full module on rank 0; empty on the other workers."""
        parameters = {name: self._full(tensor) for name, tensor in tensors_of(self.inner).items()}
        parameters |= self.extra_state()
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
        check_sparse(self.inner, self.settings, "ddp")
        sparse = sparse_parameters(self.inner)
        self.optimizer = make_optimizer(self.inner.named_parameters(), self.settings, sparse)

    def step(self, micro: Sequence[MicroBatch], learning_rate: float) -> float:
        total = torch.zeros((), device=self.device)
        for at, part in enumerate(micro):
            last = at == len(micro) - 1
            with self._synchronizing(last):
                loss = self.forward(part)
                total += loss.detach()
                if last:
                    loss, mean = self._last_loss(loss, total)
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

    def _last_loss(
        self, loss: torch.Tensor, total: torch.Tensor
    ) -> tuple[torch.Tensor, Callable[[], float]]:
        """The loss of the last micro-batch of a step, before its backward pass.

        Returns:
            The loss to pass backward, and a function that waits for the mean of `total`, the
            step's loss, over the workers.
        """
        return loss, lambda: float(total)

    def _synchronizing(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Context that exchanges gradients in the last micro-batch of a step only."""
        return contextlib.nullcontext()


def _mean_loss(module: torch.nn.Module, output: object) -> torch.Tensor:
    """The output of a module, which must be its mean loss."""
    if not isinstance(output, torch.Tensor):
        fact = f"a {type(output).__name__}"
        if isinstance(output, Mapping):
            fact += f" with the keys {', '.join(map(str, output))}"
        remedy = "return the loss tensor alone, without float() or .item()"
    elif output.numel() != 1:
        fact, remedy = f"a tensor of shape {tuple(output.shape)}", "return its .mean()"
    elif torch.is_grad_enabled() and not output.requires_grad:
        fact = "a loss without a gradient"
        remedy = "compute it from the parameters, without .detach() or torch.no_grad()"
    else:
        return output.squeeze()
    name = type(module).__name__.removeprefix("FSDP")
    raise TrainError(f"{name}.forward returned {fact}, not the mean loss of the batch: {remedy}")


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, gathered if it is sharded, dense, detached and on the CPU."""
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
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
