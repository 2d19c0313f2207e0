"""Which strategy a task needs: memory a worker under each, and the cheapest that fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import psutil
import ray

from raysys import cluster
from raysys.errors import ResourceError
from raysys.train._settings import StrategyName, TrainSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raysys.data import Table
    from raysys.train._task import TrainingTask

_VALUE = 4  # bytes: parameters and optimizer state are float32, also where bf16 computes
# Tensors of a parameter's size that the optimizer keeps.
_STATES = {"adamw": 2, "lamb": 2, "sgd": 1, "lars": 1}
# Workers that wait for each other longer than this share of a step are no bargain.
_IDLE = 0.1
# Beyond what its formulas count, a process needs room to work in.
_MARGIN = 1.1


@dataclass(frozen=True)
class Module:
    """What is known of a task's module.

    Attributes:
        parameters: Their number.
        largest_layer: Parameters of the largest layer.
        activation_bytes: Kept for backward by a worker's micro-batch.
        process_bytes: Of a worker's process with its data, before it has a module.
    """

    parameters: int
    largest_layer: int
    activation_bytes: int
    process_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a strategy needs.

    Attributes:
        strategy: Its name.
        memory_bytes: A worker's, at its most.
        traffic_bytes: Sent by a worker in a step.
        idle: Share of a step that a worker waits for others: of a pipeline, which fills and
            empties.
        fits: Whether the memory is there.
    """

    strategy: StrategyName
    memory_bytes: int
    traffic_bytes: int
    idle: float
    fits: bool


@dataclass(frozen=True)
class Plan:
    """Strategies beside each other.

    Attributes:
        module: What they were estimated for.
        limit_bytes: What a worker may hold.
        estimates: Of all strategies, the cheapest first: those that send least, and after them a
            pipeline whose workers would wait.
        settings: The given ones with the cheapest strategy that fits.
    """

    module: Module
    limit_bytes: int
    estimates: list[Estimate]
    settings: TrainSettings

    def __str__(self) -> str:
        head = (
            f"{self.module.parameters:,} parameters, {self.settings.workers} workers of "
            f"{_gib(self.limit_bytes)}: {self.settings.strategy}, the cheapest of those that fit"
        )
        lines = [
            f"  {one.strategy:<9}{_gib(one.memory_bytes):>11} a worker"
            f"{one.traffic_bytes / 2**20:>12,.1f} MiB a step   "
            + ("fits" if one.fits else "does not fit")
            + (f", waits {one.idle:.0%} of the time" if one.idle else "")
            for one in self.estimates
        ]
        return "\n".join([head, *lines])


def plan(
    task: TrainingTask,
    tables: Mapping[str, Table],
    settings: TrainSettings | None = None,
    *,
    memory_bytes: int | None = None,
) -> Plan:
    """Estimate each strategy's memory on the connected cluster, and choose.

    The module is built and a micro-batch sent through it once, in a task. Of the states of ZeRO 2
    and 3 DeepSpeed's own estimators tell the size, for 16-bit parameters, to which the other half
    is added; FSDP spreads the same. The rest is counting: parameters, gradients and the optimizer's
    tensors, activations, and what a process is without them.

    Args:
        task: What to train.
        tables: Given to its `prepare`.
        settings: Workers, batch and optimizer; their strategy rests.
        memory_bytes: That a worker may hold. None takes `settings.memory_bytes`, else the GPU's or
            the nodes' memory, shared by the workers on them.

    Raises:
        ResourceError: No strategy fits.
    """
    settings = settings or TrainSettings()
    gpu = cluster.limits().gpus >= settings.workers
    limit = memory_bytes or settings.memory_bytes or _memory_of(settings.workers, gpu)
    # An actor has a process of its own, whose memory tells what a worker's will be.
    inspector = ray.remote(_Inspector).options(num_cpus=1).remote()
    module = ray.get(inspector.inspect.remote(task, dict(tables), settings))
    estimates = [estimate(name, module, settings, limit) for name in get_args(StrategyName)]
    if settings.workers % settings.stages:
        estimates = [one for one in estimates if one.strategy != "pipeline"]
    estimates.sort(key=lambda one: (one.idle > _IDLE, one.traffic_bytes))
    cheapest = next((one for one in estimates if one.fits), None)
    if cheapest is None:
        least = min(estimates, key=lambda one: one.memory_bytes)
        raise ResourceError(
            f"{module.parameters:,} parameters on {settings.workers} workers of {_gib(limit)}: "
            f"even {least.strategy} needs {_gib(least.memory_bytes)}. Use more workers, a smaller "
            "batch_size, accumulate, checkpoint_activations, or workers with more memory"
        )
    chosen = TrainSettings.model_validate(
        settings.model_dump() | {"strategy": cheapest.strategy, "compression": "none"}
        if cheapest.strategy != "ddp"
        else settings.model_dump() | {"strategy": "ddp", "offload": False}
    )
    return Plan(module, limit, estimates, chosen)


def estimate(
    strategy: StrategyName, module: Module, settings: TrainSettings, limit: int
) -> Estimate:
    """Memory and traffic of one strategy."""
    count, workers = module.parameters, settings.workers
    states = _STATES[settings.optimizer] * _VALUE * count
    values = gradients = _VALUE * count
    activations = module.activation_bytes
    idle = 0.0
    around = 2 * _VALUE * (workers - 1) / workers * count  # an all-reduce in a ring
    if strategy == "ddp":
        held, sent = values + gradients + states, around
    elif strategy == "zero1":
        held, sent = values + gradients + (values + states) // workers, around
    elif strategy == "zero2":
        held, sent = _zero2(count, workers) + values // 2, around
    elif strategy == "zero3":
        held = _zero3(count, module.largest_layer, workers) + values // 2 // workers
        sent = 1.5 * around
    elif strategy == "fsdp":
        held = (values + gradients + states) // workers + 2 * _VALUE * module.largest_layer
        sent = 1.5 * around
    else:
        stages = settings.stages
        idle = (stages - 1) / (settings.accumulate + stages - 1)
        held = (values + gradients + states) // stages
        # A stage holds its share of the activations of as many micro-batches as there are stages.
        replicas = workers // stages
        between = 2 * module.activation_bytes / max(1, stages)
        sent = between + 2 * _VALUE * (replicas - 1) / replicas * count / stages
    total = int(_MARGIN * (held + activations) + module.process_bytes)
    return Estimate(strategy, total, int(sent), idle, total <= limit)


def _zero2(count: int, workers: int) -> int:
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as needs

    return needs(count, workers, 1, cpu_offload=False)[1]


def _zero3(count: int, largest_layer: int, workers: int) -> int:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as needs

    return needs(count, largest_layer, workers, 1, cpu_offload=False, cpu_offload_params=False)[1]


class _Inspector:
    def __repr__(self) -> str:  # its name in the dashboard
        return "plan a training"

    def inspect(
        self, task: TrainingTask, tables: dict[str, Table], settings: TrainSettings
    ) -> Module:
        """Build a task's module and send a micro-batch through it."""
        from raysys.train.strategies._layer_blocks import (
            activation_bytes,
            blocks,
            checkpoint_activations,
        )

        examples = task.prepare({name: table.arrow() for name, table in tables.items()})
        process = psutil.Process().memory_info().rss
        module = task.build()
        size = -(-settings.batch_size // (settings.workers * settings.accumulate))
        batch = task.batch(np.arange(size) % examples, np.random.default_rng(0))
        activations = activation_bytes(module, batch)
        if settings.checkpoint_activations and blocks(module):
            # Besides what is kept, one block at a time is computed again.
            once = activations // len(blocks(module))
            checkpoint_activations(module)
            activations = activation_bytes(module, batch) + once
        return Module(
            parameters=sum(one.numel() for one in module.parameters()),
            largest_layer=max(
                sum(one.numel() for one in layer.parameters(recurse=False))
                for layer in module.modules()
            ),
            activation_bytes=activations,
            process_bytes=process,
        )


def _memory_of(workers: int, gpu: bool) -> int:
    """What a worker may hold, if the cluster's nodes share theirs among the workers."""
    if gpu:

        def of_the_gpu() -> int:
            import torch

            return int(torch.cuda.get_device_properties(0).total_memory)

        return ray.get(ray.remote(of_the_gpu).options(name="look at the GPU", num_gpus=1).remote())
    return int(ray.cluster_resources()["memory"] / workers)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
