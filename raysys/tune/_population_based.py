"""Population-based training's choices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from raysys.tune._space import Choice, Domain, Integer, Space, sample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from raysys.tune._trial import Goal, Trial

_QUANTILE = 0.25
_RESAMPLE = 0.25
_FACTORS = (0.8, 1.2)


class Start(NamedTuple):
    """How a trial starts."""

    settings: dict[str, Any]
    parent: int | None = None


def propose(
    number: int,
    size: int,
    trials: Mapping[int, Trial],
    earlier: Sequence[Trial],
    space: Space,
    goal: Goal,
    defaults: Mapping[str, Any],
    rng: np.random.Generator,
) -> Start | None:
    """The next stretch of a member of the population.

    Trial `g * size + m` is stretch `g` of member `m`; stretches of one generation are compared
    when all have ended. The first members start from the defaults and from the best of earlier
    searches.

    Returns:
        None while the generation before is not complete.
    """
    if number < size:
        ranked = sorted(
            (trial for trial in earlier if trial.rounds),
            key=lambda trial: goal.merit(trial) or -math.inf,
            reverse=True,
        )
        known = [dict(defaults)] if defaults else []
        known += [trial.settings for trial in ranked]
        return Start({**sample(space, rng), **(known[number] if number < len(known) else {})})
    generation = number // size
    before = [trials[(generation - 1) * size + member] for member in range(size)]
    if any(trial.state == "running" for trial in before):
        return None
    own = before[number % size]
    usable = [trial for trial in before if trial.state == "finished"]
    if not usable:
        return Start(sample(space, rng))
    ranked = sorted(usable, key=lambda trial: goal.merits(trial.rounds[-1])[0], reverse=True)
    count = max(1, int(len(ranked) * _QUANTILE))
    good = ranked[:-count] or ranked
    if own.number in {trial.number for trial in good}:
        return Start(own.settings, own.number)
    return _copy(good[int(rng.integers(min(count, len(good))))], space, rng)


def _copy(model: Trial, space: Space, rng: np.random.Generator) -> Start:
    changed = {name: _explore(domain, model.settings[name], rng) for name, domain in space.items()}
    return Start(changed, model.number)


def _explore(domain: Domain, value: Any, rng: np.random.Generator) -> Any:
    """A value near another one, or now and then any."""
    resample, factor = rng.random() < _RESAMPLE, _FACTORS[int(rng.integers(2))]
    if resample:
        return domain.at(rng.random())
    if isinstance(domain, Choice):
        return value
    moved = value * factor
    if isinstance(domain, Integer):
        # At least one step, or small numbers would never change.
        moved = round(moved) if round(moved) != value else value + (1 if factor > 1 else -1)
    return min(max(moved, domain.low), domain.high)
