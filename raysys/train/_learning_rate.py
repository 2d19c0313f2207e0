"""The learning rate, by the step and by the batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from raysys.train._settings import OptimizerName


def learning_rate_at(
    step: int,
    *,
    steps: int,
    peak: float,
    warmup: float,
    kind: Literal["cosine", "linear", "constant"],
) -> float:
    """The learning rate of one step: up in a line, then down to zero, or level.

    Args:
        step: From 0.
        steps: Of the whole run; from there on the rate stays what it was at the end.
        peak: Reached at the end of the warm-up.
        warmup: Share of the steps, at least one of them.
        kind: What follows: half a cosine (Loshchilov & Hutter, "SGDR", 2017, equation 5), a
            straight line down, or the peak.
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * ((step + 1) / rising)
    done = min(1.0, (step - rising) / max(1, steps - rising))
    if kind == "cosine":
        return peak * (0.5 * (1 + float(np.cos(np.pi * done))))
    return peak * (1 - done) if kind == "linear" else peak


def scaled_learning_rate(
    learning_rate: float, batch_size: int, base_batch_size: int | None, optimizer: OptimizerName
) -> float:
    """A learning rate found with `base_batch_size`, for `batch_size`; None leaves it.

    It grows with the batch for SGD and LARS (Goyal et al., "Accurate, Large Minibatch SGD", 2017,
    section 2.1). Where steps are divided by the gradient's spread, it grows with the square root
    (Krizhevsky, "One weird trick", 2014; You et al., 2020, section 4; for Adam Malladi et al.,
    "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022).
    """
    if base_batch_size is None:
        return learning_rate
    ratio = batch_size / base_batch_size
    return learning_rate * (ratio if optimizer in ("sgd", "lars") else ratio**0.5)
