"""Learning rate by step and by batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from raysys.train._settings import TrainSettings


def learning_rate_at(step: int, steps: int, settings: TrainSettings) -> float:
    """Learning rate of one step, from 0: linear warm-up, then decay to zero or constant.

    The warm-up takes at least one step, the decay is linear or half a cosine (Loshchilov & Hutter,
    "SGDR", 2017, equation 5). After the last of `steps` the rate stays at its last value.
    """
    peak = scaled_learning_rate(settings)
    rising = max(1, round(settings.warmup_ratio * steps))
    if step < rising:
        return peak * ((step + 1) / rising)
    done = min(1.0, (step - rising) / max(1, steps - rising))
    if settings.lr_scheduler_type == "cosine":
        return peak * (0.5 * (1 + float(np.cos(np.pi * done))))
    return peak * (1 - done) if settings.lr_scheduler_type == "linear" else peak


def scaled_learning_rate(settings: TrainSettings) -> float:
    """The learning rate of `base_batch_size`, scaled to `batch_size`; unchanged for None.

    Linear in the batch for SGD and LARS (Goyal et al., "Accurate, Large Minibatch SGD", 2017,
    section 2.1). With its square root for Adam and LAMB, whose steps are divided by the
    gradient's spread (Krizhevsky, "One weird trick", 2014; You et al., 2020, section 4; for Adam
    Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022).
    """
    if settings.base_batch_size is None:
        return settings.learning_rate
    ratio = settings.batch_size / settings.base_batch_size
    return settings.learning_rate * (ratio if settings.optimizer in ("sgd", "lars") else ratio**0.5)
