"""Learning rate by step and by batch size."""

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
    warmup_ratio: float,
    kind: Literal["cosine", "linear", "constant"],
) -> float:
    """Learning rate of one step: linear warm-up, then decay to zero or constant.

    Args:
        step: Step number, from 0.
        steps: Number of steps of the run; after it the rate stays at its last value.
        peak: Rate at the end of the warm-up.
        warmup_ratio: Share of the steps for the warm-up, at least one step.
        kind: Half a cosine (Loshchilov & Hutter, "SGDR", 2017, equation 5), a linear decay, or
            constant.
    """
    rising = max(1, round(warmup_ratio * steps))
    if step < rising:
        return peak * ((step + 1) / rising)
    done = min(1.0, (step - rising) / max(1, steps - rising))
    if kind == "cosine":
        return peak * (0.5 * (1 + float(np.cos(np.pi * done))))
    return peak * (1 - done) if kind == "linear" else peak


def scaled_learning_rate(
    learning_rate: float, batch_size: int, base_batch_size: int | None, optimizer: OptimizerName
) -> float:
    """A learning rate of `base_batch_size`, scaled to `batch_size`; unchanged for None.

    Linear in the batch for SGD and LARS (Goyal et al., "Accurate, Large Minibatch SGD", 2017,
    section 2.1). With its square root for Adam and LAMB, whose steps are divided by the
    gradient's spread (Krizhevsky, "One weird trick", 2014; You et al., 2020, section 4; for Adam
    Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022).
    """
    if base_batch_size is None:
        return learning_rate
    ratio = batch_size / base_batch_size
    return learning_rate * (ratio if optimizer in ("sgd", "lars") else ratio**0.5)
