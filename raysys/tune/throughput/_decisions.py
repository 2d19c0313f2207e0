"""What is decided when training itself is tuned: pure functions of what was measured."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.train import TrainSettings

# Less than this is not worth another setting, and seldom more than a machine's unrest.
WORTH = 1.03
_HOPELESS = 0.85
_AGREE = 4  # rounds, after which a clear case is decided
_MOST_ROUNDS = 9
_T_95 = (6.314, 2.920, 2.353)  # of Student's t, for 2, 3, 4 differences
_NOTHING = 1e-3  # of a loss, nobody's concern


@dataclass(frozen=True)
class Tried:
    """A configuration that was measured.

    Attributes:
        settings: The whole of them.
        changed: What differs from the defaults.
        samples_per_s: Of all workers together; None if it failed.
        cost: CPU-seconds (GPU-seconds on GPUs) that are held for a million samples, or what
            they cost at the given price.
        cpu_s: CPU-seconds that a million samples really took.
        losses: After the fixed number of samples, one for each seed that was tried; lower is
            better (a measurement to be maximised stands negated).
        loss: Their mean, as far as it can be compared: the defaults' mean plus the mean
            difference over the common seeds; None if it was not measured.
        memory_bytes: Of a worker, at most.
        start_s: To the first step.
        failed: Why it does not work.
    """

    settings: TrainSettings
    changed: dict[str, Any] = field(default_factory=dict)
    samples_per_s: float | None = None
    cost: float | None = None
    cpu_s: float | None = None
    losses: tuple[float, ...] = ()
    loss: float | None = None
    memory_bytes: int | None = None
    start_s: float = 0.0
    failed: str | None = None

    @property
    def label(self) -> str:
        """What differs from the defaults, as text."""
        return ", ".join(f"{name}={value}" for name, value in self.changed.items()) or "defaults"

    def run_s(self, samples: float) -> float:
        """Seconds that so many samples take, the start counted."""
        return self.start_s + samples / self.samples_per_s if self.samples_per_s else math.inf


def with_loss(tried: Tried, losses: Sequence[float], defaults: Sequence[float]) -> Tried:
    """A configuration with its losses, by the same seeds as the first of the defaults'."""
    differences = [mine - theirs for mine, theirs in zip(losses, defaults, strict=False)]
    loss = statistics.fmean(defaults) + statistics.fmean(differences)
    return replace(tried, losses=tuple(losses), loss=loss)


def tolerance(defaults: Sequence[float], losses: Sequence[float]) -> float:
    """By how much a mean loss may be above the defaults' of the same seeds by chance.

    The one-sided 95 % bound of Student's t for the mean difference, seed by seed, for with one
    seed both see the same examples in the same order. A single seed is judged by twice the
    standard deviation of the defaults' losses. Always a thousandth is granted.

    Args:
        defaults: Losses of the defaults, one for each seed.
        losses: Those to be compared, by the same seeds, of which they may have fewer.
    """
    floor = _NOTHING * abs(statistics.fmean(defaults))
    if len(losses) > 1:
        differences = [mine - theirs for mine, theirs in zip(losses, defaults, strict=False)]
        bound = _T_95[min(len(losses), len(_T_95) + 1) - 2]
        chance = bound * statistics.stdev(differences) / math.sqrt(len(differences))
    else:
        chance = 2 * statistics.stdev(defaults) if len(defaults) > 1 else 0.0
    return max(floor, chance)


def no_worse(tried: Tried, defaults: Tried) -> bool:
    """Whether the loss is at most the defaults', within the noise."""
    if tried.loss is None or defaults.loss is None:
        return False
    return tried.loss <= defaults.loss + tolerance(defaults.losses, tried.losses)


def front(all_tried: Sequence[Tried]) -> list[Tried]:
    """Those that no other one beats: samples per second, cost, loss; fastest first.

    One that is at least as good in all and better in one beats another.
    """
    known = [
        (one, (-one.samples_per_s, one.cost, one.loss))
        for one in all_tried
        if one.samples_per_s is not None and one.cost is not None and one.loss is not None
    ]

    def beaten(figures: tuple[float, ...]) -> bool:
        return any(
            other != figures and all(a <= b for a, b in zip(other, figures, strict=True))
            for _, other in known
        )

    return sorted(
        (one for one, figures in known if not beaten(figures)),
        key=lambda one: -(one.samples_per_s or 0.0),
    )


def rank(tried: Tried, samples: float) -> tuple[float, int, float]:
    """What comes first is shorter, or as short as can be told with fewer changes.

    Args:
        tried: To be ranked.
        samples: Of a whole run.
    """
    seconds = tried.run_s(samples)
    steps = math.floor(math.log(seconds) / math.log(WORTH)) if 0 < seconds < math.inf else math.inf
    return steps, len(tried.changed), seconds


def recommend(all_tried: Sequence[Tried], samples: float) -> tuple[Tried, str]:
    """The configuration to take, and why: the shortest run with a loss no worse.

    It is on the front, unless one that beats it there takes too long to start.

    Args:
        all_tried: The defaults first.
        samples: Of a whole run. The start is counted, so that what takes long to compile must
            earn it.
    """
    defaults = all_tried[0]
    seeds = len(defaults.losses)
    sound = [one for one in all_tried if len(one.losses) >= seeds and no_worse(one, defaults)]
    best = min(sound, key=lambda one: rank(one, samples), default=defaults)
    if best.run_s(samples) >= defaults.run_s(samples) or not best.changed:
        return defaults, "nothing that was measured is faster than the defaults at a loss no worse"
    assert best.loss is not None
    assert defaults.loss is not None
    ratio = (best.samples_per_s or 0.0) / (defaults.samples_per_s or 1.0)
    allowed = tolerance(defaults.losses, best.losses)
    return best, (
        f"{best.label}: {ratio:.2f} times the samples per second of the defaults, the shortest "
        f"run of {samples:,.0f} samples among those with a loss no worse "
        f"({best.loss:.4g} against {defaults.loss:.4g}, of which {allowed:.2g} may be chance)"
    )


def speed_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """How many times as fast a challenger is as the one to beat: the median of the rounds.

    Args:
        pairs: Samples per second of both, round by round.
    """
    return statistics.median(mine / theirs for mine, theirs in pairs)


def faster(pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether a challenger is faster by more than unrest: most rounds agree, and it is worth it."""
    wins = sum(mine > theirs for mine, theirs in pairs)
    return speed_ratio(pairs) > WORTH and 3 * wins >= 2 * len(pairs)


def another_round(pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether two are to be compared further.

    Hopeless ones are left after two rounds, clear cases after four; what is in doubt, on an
    unquiet machine all, gets nine.
    """
    ratios = [mine / theirs for mine, theirs in pairs]
    if len(ratios) < 2:
        return True
    if max(ratios) < _HOPELESS or len(ratios) >= _MOST_ROUNDS:
        return False
    agree = min(ratios) > WORTH or max(ratios) < WORTH
    return len(ratios) < _AGREE or not agree


def promising_batches(
    batches: Sequence[int], known: Sequence[tuple[int, float]]
) -> dict[int, float]:
    """Batch sizes that should bring more samples per second, and how many times as many.

    A step takes a + b * batch, where a is what every step costs anew (the optimizer, the
    exchange of gradients) and b what an example costs.

    Args:
        batches: To judge.
        known: Two batch sizes or more and the seconds of their steps, the present one first.
    """
    (base, base_s), *others = known
    far, far_s = max(others)
    per_example = max(1e-12, (far_s - base_s) / (far - base))
    fixed = max(0.0, base_s - per_example * base)
    now = base / base_s
    ratios = {batch: batch / (fixed + per_example * batch) / now for batch in batches}
    return {batch: ratio for batch, ratio in ratios.items() if ratio > WORTH}
