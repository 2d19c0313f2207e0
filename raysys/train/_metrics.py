"""What a training run reports, as `raysys_train_*`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysys.telemetry import LONG_S, counter, gauge, histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEYS = ("run",)
_GAUGES = {
    "step": "Optimizer steps taken",
    "steps": "Optimizer steps of the whole run",
    "loss": "Mean training loss of about a second",
    "samples_per_second": "Examples trained on",
}


def running(run: str, is_running: bool) -> None:
    """Note that a call of `fit` has begun or ended; told by its driver."""
    gauge("raysys_train_running", "1 while a call trains", _KEYS).set(is_running, {"run": run})


def started(run: str) -> None:
    """Note that a group of workers begins: the first of a call, or after one was lost."""
    counter("raysys_train_starts_total", "Starts of groups of workers", _KEYS).inc(1, {"run": run})


def failed(run: str, reason: str) -> None:
    """Note that a run cannot go on.

    Args:
        run: Its name.
        reason: "not_finite" of a loss or gradient that is not, or explodes; "error".
    """
    counter("raysys_train_failures_total", "Runs that could not go on", (*_KEYS, "reason")).inc(
        1, {"run": run, "reason": reason}
    )


def point(run: str, steps: int, values: Mapping[str, float]) -> None:
    """Note a point of the curves; one a second at most."""
    found = {
        "steps": steps,
        "step": values["step"],
        "loss": values["loss"],
        "samples_per_second": values["samples_per_s"],
    }
    for name, value in found.items():
        gauge(f"raysys_train_{name}", _GAUGES[name], _KEYS).set(value, {"run": run})


def checkpoint(run: str, seconds: float) -> None:
    """Note that a worker's part of a checkpoint was written."""
    histogram(
        "raysys_train_checkpoint_seconds",
        "Time to write a worker's part of a checkpoint, beside the training",
        _KEYS,
        boundaries=LONG_S,
    ).observe(seconds, {"run": run})
