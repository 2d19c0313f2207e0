"""Which settings of training are tried."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from raysys.errors import RaysysError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.train import Machine, TrainSettings

# In the order in which they are tried: what may bring most comes first. Workers and threads are
# one choice, since they share the cores.
NAMES = (
    "num_workers", "threads_per_worker", "strategy", "num_stages", "precision", "prefetch_batches",
    "gradient_compression", "gradient_accumulation_steps", "activation_checkpointing",
    "cpu_offload", "batch_size", "compile",
)  # fmt: skip
_LARGEST = 16  # times the defaults' batch size


def check_space(space: Mapping[str, Sequence[Any]]) -> None:
    """Check what a user gave.

    Raises:
        RaysysError: A name is not one that can be tried, or has no values.
    """
    unknown = [name for name in space if name not in NAMES]
    if unknown:
        raise RaysysError(
            f"tune.throughput cannot try {', '.join(unknown)}: it knows {', '.join(NAMES)}"
        )
    for name, values in space.items():
        if isinstance(values, str) or not values:
            raise RaysysError(
                f"the space gives {values!r} for {name}: give a list of values, such as [1, 2]"
            )


def default_space(settings: TrainSettings, machine: Machine) -> dict[str, list[Any]]:
    """What is tried where nothing is said.

    Strategies are not among it: those that spread the state cost speed, and are for models that
    do not fit otherwise, which `train.plan` knows.
    """
    most = machine.gpus or machine.cpus
    workers = [2**power for power in range(most.bit_length()) if 2**power <= most]
    space: dict[str, list[Any]] = {"num_workers": workers}
    if not machine.gpus:
        space["threads_per_worker"] = sorted(
            {max(1, machine.cpus // count) for count in workers} | {1}
        )
    if machine.bf16:
        space["precision"] = ["fp32", "bf16"]
    space["prefetch_batches"] = [0, 2]
    if settings.strategy == "ddp":
        space["gradient_compression"] = ["none", "fp16"]
    space["gradient_accumulation_steps"] = [1, 2]
    multiples = (2**power for power in range(1, _LARGEST.bit_length()))
    space["batch_size"] = [
        settings.batch_size * m for m in multiples if settings.batch_size * m <= machine.examples
    ]
    space["compile"] = [False, True]
    return space


def moves(
    space: Mapping[str, Sequence[Any]], machine: Machine, settings: TrainSettings
) -> list[dict[str, Any]]:
    """Changes to try one by one, without those of the batch size and of compile.

    Args:
        space: Values by name.
        machine: Whose cores workers and threads share.
        settings: Their values stand for names that the space does not have.
    """
    found: list[dict[str, Any]] = []
    if "num_workers" in space or "threads_per_worker" in space:
        workers = space.get("num_workers", [settings.num_workers])
        threads = space.get("threads_per_worker", [settings.threads_per_worker])
        shapes = [
            {"num_workers": count, "threads_per_worker": each}
            for count, each in itertools.product(workers, threads)
            if machine.gpus or count * (each or 1) <= machine.cpus
        ]
        # Those that use all cores first.
        found += sorted(
            shapes, key=lambda one: -one["num_workers"] * (one["threads_per_worker"] or 1)
        )
    if "strategy" in space or "num_stages" in space:
        for name in space.get("strategy", [settings.strategy]):
            stages = (
                space.get("num_stages", [settings.num_stages]) if name == "pipeline" else [None]
            )
            one = {"strategy": name}
            found += [one | ({"num_stages": count} if count else {}) for count in stages]
    for name in NAMES:
        if name not in (
            "num_workers",
            "threads_per_worker",
            "strategy",
            "num_stages",
            "batch_size",
            "compile",
        ):
            found += [{name: value} for value in space.get(name, [])]
    return found


def useless(move: Mapping[str, Any], settings: TrainSettings, machine: Machine) -> bool:
    """Whether a change of these settings would change nothing."""
    if "gradient_compression" in move and settings.num_workers == 1:
        return True  # nothing is sent

    def meant(name: str, value: Any) -> Any:
        if name == "threads_per_worker":
            return value or 1
        if name == "precision" and value == "auto":
            return "bf16" if machine.gpus and machine.bf16 else "fp32"
        return value

    return all(meant(name, v) == meant(name, getattr(settings, name)) for name, v in move.items())


def demand(
    space: Mapping[str, Sequence[Any]] | None, settings: TrainSettings, cpus: int, gpus: int
) -> tuple[int, int]:
    """CPUs and workers of the largest configuration.

    Args:
        space: The user's, if there is one.
        settings: The defaults.
        cpus: That the cluster can give.
        gpus: Of the cluster.
    """
    own = settings.num_workers * (settings.threads_per_worker or 1)
    if space is None:
        most = gpus or cpus
        return max(own, cpus), max(settings.num_workers, 1 << (most.bit_length() - 1))
    workers = [*map(int, space.get("num_workers", [settings.num_workers])), settings.num_workers]
    threads = [
        int(each or 1) for each in space.get("threads_per_worker", [settings.threads_per_worker])
    ]
    # Where both are given, the shapes that do not fit are left out.
    held = max(workers) * min(threads)
    wide = max(threads) * min(workers)
    return max(own, held, min(wide, cpus)), max(workers)
