"""Candidate values of a training's settings."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raysys.errors import RaysysError

if TYPE_CHECKING:
    from raysys.train import Machine, TrainSettings

# In the order of trials, by likely gain. Workers and threads are one choice, since they share the
# cores; so are the strategy and its stages.
_INDEPENDENT = (
    "precision", "prefetch_batches", "gradient_compression", "gradient_accumulation_steps",
    "activation_checkpointing", "cpu_offload",
)  # fmt: skip
NAMES = (
    "num_workers", "threads_per_worker", "strategy", "num_stages", *_INDEPENDENT, "batch_size",
    "compile",
)  # fmt: skip
_MAX_BATCH_RATIO = 16  # to the defaults' batch size


def check_space(space: Mapping[str, Sequence[Any]]) -> None:
    """Check a user's space.

    Raises:
        RaysysError: A setting cannot be tuned, or has no values.
    """
    if unknown := [name for name in space if name not in NAMES]:
        raise RaysysError(
            f"tune_throughput cannot tune {', '.join(unknown)}: it tunes {', '.join(NAMES)}"
        )
    for name, values in space.items():
        if isinstance(values, str) or not values:
            raise RaysysError(
                f"the space gives {values!r} for {name}: give a list of values, such as [1, 2]"
            )


def default_space(settings: TrainSettings, machine: Machine) -> dict[str, list[Any]]:
    """Values tried by default.

    Strategies are left out: those that spread the state cost speed, and are for models that do not
    fit otherwise, which is for `train.plan` to decide.
    """
    slots = machine.gpus or machine.cpus
    workers = [2**power for power in range(slots.bit_length()) if 2**power <= slots]
    space: dict[str, list[Any]] = {"num_workers": workers}
    if not machine.gpus:
        threads = {max(1, machine.cpus // count) for count in workers}
        space["threads_per_worker"] = sorted({1, *threads})
    if machine.bf16:
        space["precision"] = ["fp32", "bf16"]
    space["prefetch_batches"] = [0, 2]
    if settings.strategy == "ddp":
        space["gradient_compression"] = ["none", "fp16"]
    space["gradient_accumulation_steps"] = [1, 2]
    ratios = (2**power for power in range(1, _MAX_BATCH_RATIO.bit_length()))
    batches = (settings.batch_size * ratio for ratio in ratios)
    space["batch_size"] = [batch for batch in batches if batch <= machine.examples]
    space["compile"] = [False, True]
    return space


def moves(
    space: Mapping[str, Sequence[Any]], machine: Machine, settings: TrainSettings
) -> list[dict[str, Any]]:
    """Changes to try one by one, without those of the batch size and of compile.

    Names that the space lacks have the values of the settings.
    """
    changes: list[dict[str, Any]] = []
    if "num_workers" in space or "threads_per_worker" in space:
        shapes = [
            {"num_workers": workers, "threads_per_worker": threads}
            for workers, threads in itertools.product(
                space.get("num_workers", [settings.num_workers]),
                space.get("threads_per_worker", [settings.threads_per_worker]),
            )
            if machine.gpus or workers * (threads or 1) <= machine.cpus
        ]
        # Those that use all cores first.
        changes += sorted(shapes, key=lambda s: -s["num_workers"] * (s["threads_per_worker"] or 1))
    if "strategy" in space or "num_stages" in space:
        for name in space.get("strategy", [settings.strategy]):
            pipeline = name == "pipeline"
            stages = space.get("num_stages", [settings.num_stages]) if pipeline else [None]
            for count in stages:
                changes.append({"strategy": name} | ({"num_stages": count} if count else {}))
    return changes + [{name: value} for name in _INDEPENDENT for value in space.get(name, [])]


def has_no_effect(move: Mapping[str, Any], settings: TrainSettings, machine: Machine) -> bool:
    """Whether a change of these settings would change nothing."""
    if "gradient_compression" in move and settings.num_workers == 1:
        return True  # nothing is sent

    def effective(name: str, value: Any) -> Any:
        if name == "threads_per_worker":
            return value or 1
        if name == "precision" and value == "auto":
            return "bf16" if machine.gpus and machine.bf16 else "fp32"
        return value

    return all(
        effective(name, value) == effective(name, getattr(settings, name))
        for name, value in move.items()
    )


def demand(
    space: Mapping[str, Sequence[Any]] | None, settings: TrainSettings, cpus: int, gpus: int
) -> tuple[int, int]:
    """CPUs and workers of the largest configuration of a user's space, or of the default one."""
    own = settings.num_workers * (settings.threads_per_worker or 1)
    if space is None:
        slots = gpus or cpus
        return max(own, cpus), max(settings.num_workers, 1 << (slots.bit_length() - 1))
    workers = [*map(int, space.get("num_workers", [settings.num_workers])), settings.num_workers]
    threads = [
        int(count or 1) for count in space.get("threads_per_worker", [settings.threads_per_worker])
    ]
    # Where both are in the space, shapes that do not fit are left out.
    most_workers, most_threads = max(workers) * min(threads), max(threads) * min(workers)
    return max(own, most_workers, min(most_threads, cpus)), max(workers)
