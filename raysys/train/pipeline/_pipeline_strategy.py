"""Pipeline parallelism, alone or with data parallelism."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from raysys.errors import TrainError
from raysys.train._module import tensors_of
from raysys.train.pipeline._cost_profile import profile
from raysys.train.pipeline._partition import partition
from raysys.train.pipeline._stage import PendingMicroBatch, StageWorker
from raysys.train.pipeline._stage_link import StageLink
from raysys.train.pipeline._trace import trace
from raysys.train.strategies._strategy import (
    MicroBatch,
    SingleDeviceStrategy,
    TensorState,
    autocast,
    copy_full,
    full_tensor,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raysys.train._settings import TrainSettings
    from raysys.train._task import Batch, StateDict

_BUCKET_BYTES = 25_000_000


class PipelineStrategy(SingleDeviceStrategy):
    """Consecutive layers on consecutive workers, which pass micro-batches on.

    The schedule is 1F1B (Narayanan et al., "Memory-Efficient Pipeline-Parallel DNN Training",
    2021, the flushed variant): a stage keeps the activations of as many micro-batches as there are
    stages after it, not of all of them as in GPipe (Huang et al., 2019). The bubble is
    (stages - 1) / (micro-batches + stages - 1) of a step. All stages take the step together, so
    it equals that of one process.

    Several pipelines share the examples and average their gradients after the last micro-batch.
    Worker r is stage r // replicas of replica r % replicas: the replicas of a stage are
    neighbours, most likely on one node, because nothing hides their exchange of gradients, while
    activations travel during the computation of the next micro-batch.

    Every stage draws dropout from its own generator, so with dropout the numbers differ from
    those of one process. Buffers that the forward pass changes are those of the first replica.

    Raises:
        TrainError: The module cannot be traced or cut.
    """

    def __init__(
        self, module: torch.nn.Module, settings: TrainSettings, device: str, example: Batch
    ) -> None:
        """Split a module; called by all workers together.

        Args:
            module: The module; parameters of other stages are freed.
            settings: Number of stages, and the optimizer's settings.
            device: Device of this worker.
            example: A batch with the shapes of all micro-batches.
        """
        world, rank = dist.get_world_size(), dist.get_rank()
        self._stages, replicas = settings.num_stages, world // settings.num_stages
        self._at, replica = divmod(rank, replicas)
        module = module.to(device)
        example = {name: value.to(device) for name, value in example.items()}
        traced = trace(module, example)
        cast = autocast(settings, device)
        profiled = profile(traced, example, cast, settings.gradient_accumulation_steps)
        stages = partition(traced, profiled, self._stages)
        self._worker = StageWorker(
            stages[self._at], traced, profiled, cast,
            checkpointed=settings.activation_checkpointing, compiled=settings.compile,
        )  # fmt: skip
        super().__init__(self._worker.holder, settings, device)
        self.data_shard = (replica, replicas)
        self._shapes = {name: (value.shape, value.dtype) for name, value in example.items()}
        stage_of = {name: at for at, stage in enumerate(stages) for name in stage.tensor_names}
        self._everything = [
            (name, tensor.shape, tensor.dtype, stage_of[name] * replicas)
            for name, tensor in tensors_of(module).items()
        ]
        used = (*self._worker.tensors.values(), *self.inner.parameters(), *self.inner.buffers())
        mine = {id(tensor) for tensor in used}
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) not in mine:
                tensor.data = tensor.new_empty(0)
        self._connect(replicas)
        self.start()

    def _connect(self, replicas: int) -> None:
        """Make all process groups, in the same order on every worker."""
        stages = np.arange(self._stages * replicas).reshape(self._stages, replicas)
        onward, back, self._replicas = (
            dist.new_subgroups_by_enumeration(ranks.tolist())[0]
            for ranks in (stages.T, stages.T, stages)
        )
        rank = dist.get_rank()
        self._before = StageLink(rank - replicas, back, onward, self.device)
        self._after = StageLink(rank + replicas, onward, back, self.device)

    def step(self, micro: Sequence[MicroBatch], learning_rate: float) -> float:
        self._check_shapes(micro)
        replicas = self.data_shard[1]
        if replicas > 1:
            for buffer in self._worker.changing:
                dist.broadcast(buffer, self._at * replicas, group=self._replicas)
        loss = self._pass_through(micro)() / replicas
        if replicas > 1:
            gradients = [p.grad for p in self.inner.parameters() if p.grad is not None]
            average(gradients, self._replicas, replicas)
        self._clip()
        self._take_step(loss, learning_rate)
        return loss

    def _pass_through(self, micro: Sequence[MicroBatch]) -> Callable[[], float]:
        """Forward and backward of all micro-batches; returns a function that waits for the loss."""
        worker, stage, count = self._worker, self._worker.stage, len(micro)
        returning = [value for value in stage.each.sends if value.graded]
        once = self._before.receive(stage.once.receives)
        forward = self._before.receive(stage.each.receives, count)
        backward = self._after.receive(returning, count)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self._after.send(worker.begin(next(once)))
        waiting: deque[PendingMicroBatch] = deque()
        ahead = min(count, self._stages - 1 - self._at)
        arriving: Callable[[], float]
        for at in range(count + ahead):
            if at < count:
                passed = worker.forward(next(forward), micro[at].batch, micro[at].weight)
                self._after.send(passed.sent)
                waiting.append(passed)
                if passed.loss is not None:
                    total += passed.loss
                if at == count - 1:
                    arriving = _sum(total)
            if at >= ahead:
                self._before.send(worker.backward(waiting.popleft(), next(backward)))
        back = self._after.receive([value for value in stage.once.sends if value.graded])
        self._before.send(worker.end(next(back)))
        self._before.finish()
        self._after.finish()
        return arriving

    def forward(self, part: MicroBatch) -> torch.Tensor | None:
        worker, stage = self._worker, self._worker.stage
        self._after.send(worker.begin(next(self._before.receive(stage.once.receives))))
        received = next(self._before.receive(stage.each.receives))
        passed = worker.look(received, part.batch, part.weight)
        self._after.send(passed.sent)
        self._after.finish()
        return passed.loss

    def _check_shapes(self, micro: Sequence[MicroBatch]) -> None:
        for name, value in (item for part in micro for item in part.batch.items()):
            shape, dtype = self._shapes.get(name, ((), None))
            if (value.shape, value.dtype) != (shape, dtype):
                raise TrainError(
                    f"micro-batches of a pipeline must have one shape: {name} is {value.dtype} "
                    f"{tuple(value.shape)}, expected {dtype} {tuple(shape)}; make batch_size a "
                    "multiple of gradient_accumulation_steps x num_workers / num_stages, and "
                    "all batches of the task of one shape"
                )

    def _clip(self) -> None:
        settings = self.settings
        if not (settings.max_grad_norm or settings.max_grad_norm_ratio):
            return
        trained = [p for p in self.inner.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained]).double()
        # All replicas of a stage have the same gradient.
        self.grad_norm = math.sqrt(_sum(norm.square())() / self.data_shard[1])
        if settings.max_grad_norm:
            limit = torch.tensor(self.grad_norm, dtype=torch.float64, device=self.device)
            torch.nn.utils.clip_grads_with_norm_(trained, settings.max_grad_norm, limit)

    def load_tensor_states(self, read: Callable[[str], TensorState], steps: int) -> None:
        super().load_tensor_states(read, steps)
        for name, copy in self._worker.copies.items():
            copy_full(copy, read(name)["value"])

    def full_state_dict(self) -> StateDict:
        mine, rank = tensors_of(self.inner), dist.get_rank()
        parameters: StateDict = {}
        for name, shape, dtype, owner in self._everything:
            if rank == 0 and owner == 0:
                parameters[name] = full_tensor(mine[name])
            elif rank == 0:
                arrived = torch.empty(shape, dtype=dtype, device=self.device)
                dist.recv(arrived, owner)
                parameters[name] = full_tensor(arrived)
            elif rank == owner:
                dist.send(mine[name].detach().contiguous(), 0)
        return parameters


def average(gradients: list[torch.Tensor], group: Any, replicas: int) -> None:
    """Replace gradients by their means over a group, in buckets sent one after the other."""
    buckets: dict[tuple[torch.dtype, int], list[torch.Tensor]] = defaultdict(list)
    sizes: Counter[torch.dtype] = Counter()
    for gradient in gradients:
        buckets[gradient.dtype, sizes[gradient.dtype] // _BUCKET_BYTES].append(gradient)
        sizes[gradient.dtype] += gradient.nbytes
    under_way = []
    for bucket in buckets.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket]).div_(replicas)
        under_way.append((dist.all_reduce(flat, group=group, async_op=True), flat, bucket))
    for work, flat, bucket in under_way:
        work.wait()
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _sum(value: torch.Tensor) -> Callable[[], float]:
    """Begin to sum a number over all workers; returns a function that waits for it."""
    shared = value.clone()
    work = dist.all_reduce(shared, async_op=True)

    def wait() -> float:
        work.wait()
        return float(shared)

    return wait
