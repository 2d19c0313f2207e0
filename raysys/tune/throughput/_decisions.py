"""Decisions of a throughput search: pure functions of the measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raysys.tune.throughput._result import ThroughputTrial

MIN_SPEEDUP = 1.03  # smaller gains are rarely more than a machine's noise
_HOPELESS_SPEEDUP = 0.85
_MIN_ROUNDS, _MAX_ROUNDS = 4, 9  # of a comparison: a clear case, a doubtful one
_T_95 = (6.314, 2.920, 2.353)  # quantiles of Student's t, for 2, 3 and 4 differences
_NEGLIGIBLE = 1e-3  # relative difference of a loss


def tolerance(defaults: Sequence[float], losses: Sequence[float]) -> float:
    """Difference by which a mean loss may exceed the defaults' by chance.

    The one-sided 95 % bound of Student's t for the mean paired difference: under one seed both see
    the same examples in the same order. With a single seed, twice the standard deviation of the
    defaults' losses. Never less than a thousandth of the defaults' mean.
    """
    floor = _NEGLIGIBLE * abs(statistics.fmean(defaults))
    if len(losses) > 1:
        differences = [own - base for own, base in zip(losses, defaults, strict=False)]
        bound = _T_95[min(len(losses), len(_T_95) + 1) - 2]
        chance = bound * statistics.stdev(differences) / math.sqrt(len(differences))
    else:
        chance = 2 * statistics.stdev(defaults) if len(defaults) > 1 else 0.0
    return max(floor, chance)


def loss_acceptable(trial: ThroughputTrial, defaults: ThroughputTrial) -> bool:
    """Whether the loss is at most the defaults', within the noise."""
    if trial.loss is None or defaults.loss is None:
        return False
    return trial.loss <= defaults.loss + tolerance(defaults.losses, trial.losses)


def rank(trial: ThroughputTrial, n_samples: float) -> tuple[float, int, float]:
    """Sort key: shorter runs first; of indistinguishable ones, the fewest changes."""
    seconds = trial.run_s(n_samples)
    steps = math.floor(math.log(seconds, MIN_SPEEDUP)) if 0 < seconds < math.inf else math.inf
    return steps, len(trial.changed), seconds


def recommend(trials: Sequence[ThroughputTrial], n_samples: float) -> tuple[ThroughputTrial, str]:
    """The trial with the shortest run at an acceptable loss, and the reason.

    It is on the Pareto front, unless a trial that dominates it takes too long to start: the start
    counts, so that the time to compile has to pay off. The first trial is that of the defaults.
    """
    defaults = trials[0]
    sound = [
        trial
        for trial in trials
        if len(trial.losses) >= len(defaults.losses) and loss_acceptable(trial, defaults)
    ]
    best = min(sound, key=lambda trial: rank(trial, n_samples), default=defaults)
    if best.run_s(n_samples) >= defaults.run_s(n_samples) or not best.changed:
        return defaults, "no measured configuration beats the defaults without a higher loss"
    assert best.loss is not None
    assert defaults.loss is not None
    ratio = (best.samples_per_s or 0.0) / (defaults.samples_per_s or 1.0)
    allowed = tolerance(defaults.losses, best.losses)
    return best, (
        f"{best.label}: {ratio:.2f} times the samples per second of the defaults, the shortest "
        f"run of {n_samples:,.0f} samples without a higher loss ({best.loss:.4g} against "
        f"{defaults.loss:.4g}, {allowed:.2g} allowed for chance)"
    )


def speed_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Median ratio of a challenger's speed to that of the incumbent, from both by round."""
    return statistics.median(challenger / incumbent for challenger, incumbent in pairs)


def faster(pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether a challenger is faster beyond noise: in two thirds of the rounds, and enough."""
    wins = sum(challenger > incumbent for challenger, incumbent in pairs)
    return speed_ratio(pairs) > MIN_SPEEDUP and 3 * wins >= 2 * len(pairs)


def needs_another_round(pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether to compare two configurations further.

    Hopeless challengers get two rounds, clear cases four, doubtful ones (on a noisy machine all)
    nine.
    """
    ratios = [challenger / incumbent for challenger, incumbent in pairs]
    if len(ratios) < 2:
        return True
    if max(ratios) < _HOPELESS_SPEEDUP or len(ratios) >= _MAX_ROUNDS:
        return False
    clear = min(ratios) > MIN_SPEEDUP or max(ratios) < MIN_SPEEDUP
    return len(ratios) < _MIN_ROUNDS or not clear


def promising_batches(
    batches: Sequence[int], step_times: Sequence[tuple[int, float]]
) -> dict[int, float]:
    """Batch sizes predicted to bring more samples per second, with the predicted speed-up.

    A step takes a + b * batch, where a is the cost of every step (the optimizer, the exchange of
    gradients) and b that of an example; `step_times` are two batch sizes or more with the seconds
    of a step, the present one first.
    """
    base, base_s = step_times[0]
    far, far_s = max(step_times[1:])
    per_example = max(1e-12, (far_s - base_s) / (far - base))
    fixed = max(0.0, base_s - per_example * base)
    now = base / base_s
    ratios = {batch: batch / (fixed + per_example * batch) / now for batch in batches}
    return {batch: ratio for batch, ratio in ratios.items() if ratio > MIN_SPEEDUP}
