"""A module and its optimizer in one worker: what every strategy offers the loop."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from raysys.train._optimizers import STATE_KEYS, make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from raysys.train._settings import TrainSettings
    from raysys.train._task import Batch, Parameters

# A parameter as any strategy can give and take it: "value" and the optimizer's tensors by their
# names ("exp_avg", ...), whole and on the CPU. A buffer has its "value" alone.
TensorState = dict[str, torch.Tensor]


class NotFiniteError(Exception):
    """A step's loss or gradient is not finite, or too large; the step was not taken."""


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the module at once.

    Attributes:
        batch: The arguments of `forward`, on the worker's device.
        weight: What its mean loss counts in the worker's, so that the mean over the workers is
            the mean over the global batch, whatever the sizes of shares and micro-batches.
    """

    batch: Batch
    weight: float


class Replica(ABC):
    """A module and its optimizer in one worker, spread over the workers as a strategy says.

    Workers call every method together, with the same arguments but for the batches.

    Attributes:
        module: What is switched between training and evaluation.
        share: The place of this worker's share of each global batch, and the number of shares.
        norm: The 2-norm of the whole gradient of the last step, before it was clipped; None
            where neither `clip_norm` nor `explosion` asks for it.
        norm_limit: A step with a larger one is not taken.
    """

    module: torch.nn.Module
    share: tuple[int, int]
    norm: float | None = None
    norm_limit: float = math.inf

    @abstractmethod
    def step(self, micro: Sequence[MicroBatch], learning_rate: float) -> float:
        """Take one optimizer step with the micro-batches of this worker's share.

        Returns:
            The loss of the global batch, the same on all workers.

        Raises:
            NotFiniteError: The loss or the gradient is not finite, or above `norm_limit`, on all
                workers alike; the parameters are those before the step.
        """

    @abstractmethod
    def forward(self, part: MicroBatch) -> torch.Tensor | None:
        """The weighted loss of a micro-batch; None on the inner stages of a pipeline."""

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """A parameter's gradient as the last, refused step left it."""
        return parameter.grad

    def check(self, loss: float) -> None:
        """Refuse a step by what is the same on all workers: its loss and the gradient's norm."""
        if not math.isfinite(loss):
            raise NotFiniteError(f"the loss is {loss}")
        if self.norm is not None and not self.norm <= self.norm_limit:
            usual = f", more than {self.norm_limit:.4g}" if math.isfinite(self.norm) else ""
            raise NotFiniteError(f"the norm of the gradient is {self.norm:.4g}{usual}")

    @abstractmethod
    def states(self) -> Iterator[tuple[str, TensorState]]:
        """The part of the state that this worker writes to a checkpoint, one tensor at a time.

        What all workers yield makes the whole, and nothing is yielded twice. What is yielded may
        be in use: copy it.
        """

    @abstractmethod
    def load(self, read: Callable[[str], TensorState], steps: int) -> None:
        """Take over what `states` gave under any strategy, after so many optimizer steps."""

    @abstractmethod
    def full_parameters(self) -> Parameters:
        """Parameters and buffers of the whole module; on the worker of rank 0, elsewhere empty."""


class Plain(Replica):
    """One process without communication, and the base of those with a local optimizer."""

    def __init__(self, module: torch.nn.Module, settings: TrainSettings, device: str) -> None:
        self.inner = module.to(device)
        self.module = self.inner
        self.settings, self.device = settings, device
        self.share = (0, 1)
        self._autocast = autocast(settings, device)

    def start(self) -> None:
        """Make the optimizer, when the parameters are where they stay."""
        settings = self.settings
        self.optimizer = make_optimizer(
            self.inner.named_parameters(),
            kind=settings.optimizer,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
        )

    def step(self, micro: Sequence[MicroBatch], learning_rate: float) -> float:
        total = torch.zeros((), device=self.device)
        for at, part in enumerate(micro):
            last = at == len(micro) - 1
            with self._communicating(last):
                loss = self.forward(part)
                total += loss.detach()
                if last:
                    arriving = self._mean(total)
                loss.backward()
        result = arriving()
        self._clip()
        self.check(result)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return result

    def forward(self, part: MicroBatch) -> torch.Tensor:
        with self._autocast():
            return self.module(**part.batch) * part.weight

    def _clip(self) -> None:
        settings = self.settings
        if settings.clip_norm or settings.explosion:
            limit = settings.clip_norm or math.inf
            norm = torch.nn.utils.clip_grad_norm_(self.inner.parameters(), limit)
            self.norm = float(whole(norm))

    def states(self) -> Iterator[tuple[str, TensorState]]:
        mine = shares_of(self.inner, self.share[1])[self.share[0]]
        keys = STATE_KEYS[self.settings.optimizer]
        for name, tensor in tensors_of(self.inner).items():
            held = self.optimizer.state.get(tensor, {})
            # All workers take part in gathering what is spread.
            state = {"value": whole(tensor)} | {k: whole(held[k]) for k in keys if k in held}
            if name in mine:
                yield name, state

    def load(self, read: Callable[[str], TensorState], steps: int) -> None:
        for name, tensor in tensors_of(self.inner).items():
            state = read(name)
            with torch.no_grad():
                copy_whole(tensor, state.pop("value"))
            if state:
                held: dict[str, Any] = {"step": torch.tensor(float(steps))}
                for key, value in state.items():
                    held[key] = torch.zeros_like(tensor, dtype=value.dtype)
                    copy_whole(held[key], value)
                self.optimizer.state[tensor] = held

    def full_parameters(self) -> Parameters:
        found = {name: whole(tensor) for name, tensor in tensors_of(self.inner).items()}
        return found if self.share[0] == 0 else {}

    def _mean(self, loss: torch.Tensor) -> Callable[[], float]:
        """Begin to average a loss over the workers; what is returned waits for it."""
        return lambda: float(loss)

    def _communicating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Where gradients are exchanged: in the last micro-batch of a step only."""
        return contextlib.nullcontext()


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and saved buffers by their first name; one that is shared stands once."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def aliases_of(module: torch.nn.Module) -> dict[str, str]:
    """Second names of shared tensors, with the first."""
    first: dict[int, str] = {}
    found = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if first.setdefault(id(tensor), name) != name:
            found[name] = first[id(tensor)]
    return found


def shares_of(module: torch.nn.Module, count: int) -> list[set[str]]:
    """Names of the tensors in as many parts, near to equal in bytes.

    Buffers are in the first: where workers' differ, as running statistics do, its own count.
    """
    tensors = tensors_of(module)
    parameters = {name: t for name, t in tensors.items() if isinstance(t, torch.nn.Parameter)}
    parts: list[set[str]] = [set() for _ in range(count)]
    parts[0] |= tensors.keys() - parameters.keys()
    sizes = [0] * count
    for name in sorted(parameters, key=lambda name: -size_of(parameters[name])):
        least = sizes.index(min(sizes))
        parts[least].add(name)
        sizes[least] += size_of(parameters[name])
    return parts


def size_of(tensor: torch.Tensor) -> int:
    """Elements, also of a parameter that ZeRO has taken to pieces."""
    return int(getattr(tensor, "ds_numel", tensor.numel()))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, put together if it is spread, on the CPU and apart from its graph."""
    from torch.distributed.tensor import DTensor

    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def copy_whole(target: torch.Tensor, source: torch.Tensor) -> None:
    """Write a whole tensor into one that may be spread."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(target, DTensor):
        source = distribute_tensor(
            source.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
    target.detach().copy_(source)


def autocast(
    settings: TrainSettings, device: str
) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Makes the context of the forward pass: bfloat16 where it was asked for or pays."""
    kind = device.partition(":")[0]
    wanted = settings.precision
    if wanted == "auto":
        fast = kind == "cuda" and torch.cuda.is_bf16_supported()
        wanted = "bf16" if fast else "fp32"
    if wanted == "fp32":
        return contextlib.nullcontext
    return lambda: torch.autocast(kind, dtype=torch.bfloat16)
