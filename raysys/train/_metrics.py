"""What a training run reports, as `raysys_train_*`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysys.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping


def running(run: str, is_running: bool) -> None:
    """Note that a call of `fit` has begun or ended; told by its driver."""
    metrics.TRAIN_RUNNING.set(is_running, {"run": run})


def started(run: str) -> None:
    """Note that a group of workers begins: the first of a call, or after one was lost."""
    metrics.TRAIN_STARTS.inc(1, {"run": run})


def failed(run: str, reason: str) -> None:
    """Note that a run cannot go on.

    Args:
        run: Its name.
        reason: "not_finite" of a loss or gradient that is not, or explodes; "error".
    """
    metrics.TRAIN_FAILURES.inc(1, {"run": run, "reason": reason})


def point(run: str, steps: int, values: Mapping[str, float]) -> None:
    """Note a point of the curves; one a second at most."""
    labels = {"run": run}
    metrics.TRAIN_STEPS.set(steps, labels)
    metrics.TRAIN_STEP.set(values["step"], labels)
    metrics.TRAIN_LOSS.set(values["loss"], labels)
    metrics.TRAIN_SAMPLES_PER_SECOND.set(values["samples_per_s"], labels)


def checkpoint(run: str, seconds: float) -> None:
    """Note that a worker's part of a checkpoint was written."""
    metrics.TRAIN_CHECKPOINT_SECONDS.observe(seconds, {"run": run})
