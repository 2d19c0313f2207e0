"""Choice of a strategy: memory and traffic under each, and the cheapest that fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import psutil
import ray

from raysys import cluster
from raysys.arguments import checked
from raysys.console import text_table
from raysys.errors import ResourceError
from raysys.imports import lazy_import
from raysys.train._settings import StrategyName, TrainSettings

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.train._task import TrainingTask

torch = lazy_import("torch")
zero12 = lazy_import("deepspeed.runtime.zero.stage_1_and_2")
zero3 = lazy_import("deepspeed.runtime.zero.stage3")

_VALUE_BYTES = 4  # parameters and optimizer state are float32, also where bf16 computes
# Tensors of a parameter's size in the optimizer's state.
_STATES = {"adamw": 2, "lamb": 2, "sgd": 1, "lars": 1}
# A pipeline whose workers wait for a larger share of a step comes last.
_MAX_BUBBLE = 0.1
# Memory of a process beyond what the formulas count.
_MARGIN = 1.1


@dataclass(frozen=True)
class ModuleSummary:
    """Sizes of a task's module.

    Attributes:
        parameters: Number of parameters.
        largest_layer: Number of parameters of the largest layer.
        activation_bytes: Activations kept for the backward pass of a worker's micro-batch.
        process_bytes: Memory of a worker's process with its data, before it has a module.
    """

    parameters: int
    largest_layer: int
    activation_bytes: int
    process_bytes: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Needs of a strategy.

    Attributes:
        strategy: Name of the strategy.
        memory_bytes: Peak memory of a worker.
        traffic_bytes: Bytes sent by a worker in a step.
        bubble_fraction: Share of a step that a worker of a pipeline waits while it fills and
            empties.
        fits: Whether the memory is available.
    """

    strategy: StrategyName
    memory_bytes: int
    traffic_bytes: int
    bubble_fraction: float
    fits: bool


@dataclass(frozen=True)
class StrategyPlan:
    """Comparison of the strategies.

    Attributes:
        module: Sizes of the module.
        limit_bytes: Memory available to a worker.
        estimates: Estimates of all strategies, the cheapest first: by traffic, and after them a
            pipeline whose workers would wait.
        settings: The settings with the cheapest strategy that fits.
    """

    module: ModuleSummary
    limit_bytes: int
    estimates: list[MemoryEstimate]
    settings: TrainSettings

    def __repr__(self) -> str:
        fitting = [estimate.strategy for estimate in self.estimates if estimate.fits]
        return f"StrategyPlan({self.settings.strategy!r}, fitting: {', '.join(fitting)})"

    def __str__(self) -> str:
        head = (
            f"{self.module.parameters:,} parameters, {self.settings.num_workers} workers of "
            f"{_gib(self.limit_bytes)}: {self.settings.strategy}, the cheapest strategy that fits"
        )
        columns = ("strategy", ">memory a worker", ">traffic a step", "fits", ">waiting")
        rows = [
            (
                e.strategy, _gib(e.memory_bytes), f"{e.traffic_bytes / 2**20:,.1f} MiB",
                "yes" if e.fits else "no", f"{e.bubble_fraction:.0%}",
            )
            for e in self.estimates
        ]  # fmt: skip
        return f"{head}\n{text_table(columns, rows)}"


@checked
def plan(
    task: TrainingTask,
    tables: Mapping[str, Table],
    settings: TrainSettings | None = None,
    *,
    memory_limit_bytes: int | None = None,
) -> StrategyPlan:
    """Estimate each strategy's memory on the connected cluster, and choose one.

    The module is built, and a micro-batch sent through it once, in an actor. DeepSpeed's own
    estimators give the state of ZeRO 2 and 3 for 16-bit parameters, to which the other half is
    added; FSDP shards the same. The rest is counting: parameters, gradients and the optimizer's
    tensors, activations, and the memory of a process without them.

    Args:
        task: Task to train.
        tables: Tables for the task's `prepare`.
        settings: Workers, batch and optimizer; the strategy is ignored, and one that rules the
            other settings out is left out.
        memory_limit_bytes: Memory of a worker. By default `settings.memory_limit_bytes`, else the
            memory of the GPU, or that of the nodes divided by the workers on them.

    Raises:
        ResourceError: No strategy fits.
    """
    settings = settings or TrainSettings()
    workers = settings.num_workers
    gpu = cluster.limits().gpus >= workers
    limit = memory_limit_bytes or settings.memory_limit_bytes or _worker_memory(workers, gpu)
    # An actor has a process of its own, whose memory is that of a worker.
    inspector = ray.remote(_Inspector).options(num_cpus=1).remote()
    module = ray.get(inspector.inspect.remote(task, dict(tables), settings))
    return choose(module, settings, limit, gpu=gpu)


def choose(
    module: ModuleSummary, settings: TrainSettings, limit: int, *, gpu: bool
) -> StrategyPlan:
    """Choose a strategy for workers with `limit` bytes of memory each.

    Raises:
        ResourceError: No strategy fits.
    """
    possible = {
        strategy: chosen
        for strategy in get_args(StrategyName)
        if (chosen := _settings_under(strategy, settings))
    }
    estimates = [
        estimate(strategy, module, chosen, limit, offloads=gpu and chosen.cpu_offload)
        for strategy, chosen in possible.items()
    ]
    estimates.sort(key=lambda e: (e.bubble_fraction > _MAX_BUBBLE, e.traffic_bytes))
    cheapest = next((e for e in estimates if e.fits), None)
    if cheapest is None:
        smallest = min(estimates, key=lambda e: e.memory_bytes)
        raise ResourceError(
            f"{module.parameters:,} parameters on {settings.num_workers} workers of "
            f"{_gib(limit)}: even {smallest.strategy} needs {_gib(smallest.memory_bytes)}. Use "
            "more workers, a smaller batch_size, gradient_accumulation_steps, "
            "activation_checkpointing, or workers with more memory"
        )
    return StrategyPlan(module, limit, estimates, possible[cheapest.strategy])


def _settings_under(strategy: StrategyName, settings: TrainSettings) -> TrainSettings | None:
    """The settings under a strategy, without options of others; None if it rules them out."""
    values = settings.model_dump() | {"strategy": strategy}
    if strategy != "ddp":
        values["gradient_compression"] = "none"
    if strategy in ("ddp", "pipeline"):
        values["cpu_offload"] = False
    try:
        return TrainSettings(**values)
    except ValueError:
        return None


def estimate(
    strategy: StrategyName, module: ModuleSummary, settings: TrainSettings, limit: int,
    *, offloads: bool = False,
) -> MemoryEstimate:  # fmt: skip
    """Memory and traffic of one strategy; `offloads` counts a GPU's memory under cpu_offload."""
    count, workers = module.parameters, settings.num_workers
    states = _STATES[settings.optimizer] * _VALUE_BYTES * count
    values = gradients = _VALUE_BYTES * count
    bubble = 0.0
    all_reduce = 2 * _VALUE_BYTES * (workers - 1) / workers * count  # in a ring
    traffic = all_reduce
    if strategy == "ddp":
        memory = values + gradients + states
    elif strategy == "zero1":
        memory = values + gradients + (0 if offloads else (values + states) // workers)
    elif strategy == "zero2":
        needs = zero12.estimate_zero2_model_states_mem_needs(count, workers, 1, offloads)
        memory = needs[1] + values // 2
    elif strategy == "zero3":
        needs = zero3.estimate_zero3_model_states_mem_needs(
            count, module.largest_layer, workers, 1, offloads, offloads
        )
        memory = needs[1] + (0 if offloads else values // 2 // workers)
        traffic = 1.5 * all_reduce
    elif strategy == "fsdp":
        memory = 0 if offloads else (values + gradients + states) // workers
        memory += 2 * _VALUE_BYTES * module.largest_layer
        traffic = 1.5 * all_reduce
    else:
        stages = settings.num_stages
        bubble = (stages - 1) / (settings.gradient_accumulation_steps + stages - 1)
        memory = (values + gradients + states) // stages
        # A stage keeps its share of the activations of as many micro-batches as there are stages.
        replicas = workers // stages
        between = 2 * module.activation_bytes / max(1, stages)
        traffic = between + 2 * _VALUE_BYTES * (replicas - 1) / replicas * count / stages
    total = int(_MARGIN * (memory + module.activation_bytes) + module.process_bytes)
    return MemoryEstimate(strategy, total, int(traffic), bubble, total <= limit)


class _Inspector:
    def __repr__(self) -> str:  # name in the dashboard
        return "plan a training"

    def inspect(
        self, task: TrainingTask, tables: dict[str, Table], settings: TrainSettings
    ) -> ModuleSummary:
        """Build a task's module and send a micro-batch through it."""
        from raysys.train._module import built_module
        from raysys.train.strategies._layer_blocks import (
            activation_bytes,
            apply_activation_checkpointing,
            blocks,
        )

        examples = task.prepare({name: table.to_arrow() for name, table in tables.items()})
        process = psutil.Process().memory_info().rss
        module = built_module(task, settings.seed, examples)
        micro_batches = settings.num_workers * settings.gradient_accumulation_steps
        size = -(-settings.batch_size // micro_batches)
        batch = task.batch(np.arange(size) % examples, np.random.default_rng(0))
        activations = activation_bytes(module, batch)
        if settings.activation_checkpointing and blocks(module):
            # Besides the activations kept, those of one block at a time are recomputed.
            one_block = activations // len(blocks(module))
            apply_activation_checkpointing(module)
            activations = activation_bytes(module, batch) + one_block
        return ModuleSummary(
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            largest_layer=max(
                sum(parameter.numel() for parameter in layer.parameters(recurse=False))
                for layer in module.modules()
            ),
            activation_bytes=activations,
            process_bytes=process,
        )


def _worker_memory(workers: int, gpu: bool) -> int:
    """Memory of a worker, if the cluster's nodes share theirs among the workers."""
    if not gpu:
        return int(ray.cluster_resources()["memory"] / workers)

    def gpu_memory() -> int:
        return int(torch.cuda.get_device_properties(0).total_memory)

    return ray.get(ray.remote(gpu_memory).options(name="look at the GPU", num_gpus=1).remote())


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
