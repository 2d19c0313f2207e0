"""Proposals of population-based training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from raysys.tune._space import Choice, Domain, Integer, random_params

if TYPE_CHECKING:
    import numpy as np

    from raysys.tune._proposer import Proposer
    from raysys.tune._trial import Trial

_QUANTILE = 0.25
_RESAMPLE = 0.25
_FACTORS = (0.8, 1.2)


class Proposal(NamedTuple):
    """Parameters of a new trial, and the number of the trial that it continues."""

    params: dict[str, Any]
    parent: int | None = None


def propose(
    proposer: Proposer, size: int, number: int, trials: Mapping[int, Trial],
    earlier: Sequence[Trial], rng: np.random.Generator,
) -> Proposal | None:  # fmt: skip
    """The next stretch of a member of the population.

    Trial `g * size + m` is stretch `g` of member `m`; stretches of one generation are compared
    when all have ended; until then nothing is proposed. The first members start from the
    enqueued parameters and from the best of earlier searches.
    """
    space, objectives = proposer.space, proposer.objectives
    if number < size:
        ranked = sorted(
            (trial for trial in earlier if trial.rounds),
            key=lambda trial: objectives.scores(objectives.metrics(trial)),
            reverse=True,
        )
        enqueue = proposer.sampler.enqueue
        starts = [*([enqueue] if enqueue else []), *(trial.params for trial in ranked)]
        params = random_params(space, rng)
        return Proposal({**params, **(starts[number] if number < len(starts) else {})})
    generation = number // size
    before = [trials[(generation - 1) * size + member] for member in range(size)]
    if any(trial.state == "running" for trial in before):
        return None
    own = before[number % size]
    usable = [trial for trial in before if trial.state == "finished"]
    if not usable:
        return Proposal(random_params(space, rng))
    ranked = sorted(usable, key=lambda trial: objectives.scores(trial.rounds[-1])[0], reverse=True)
    count = max(1, int(len(ranked) * _QUANTILE))
    survivors = ranked[:-count] or ranked
    if own.number in {trial.number for trial in survivors}:
        return Proposal(own.params, own.number)
    model = survivors[int(rng.integers(min(count, len(survivors))))]
    params = {name: _perturbed(domain, model.params[name], rng) for name, domain in space.items()}
    return Proposal(params, model.number)


def _perturbed(domain: Domain, value: Any, rng: np.random.Generator) -> Any:
    """A neighbouring value, or one drawn anew with probability `_RESAMPLE`."""
    resample, factor = rng.random() < _RESAMPLE, _FACTORS[int(rng.integers(2))]
    if resample:
        return domain.quantile(rng.random())
    if isinstance(domain, Choice):
        return value
    moved = value * factor
    if isinstance(domain, Integer):
        # At least one step, or small numbers would never change.
        moved = round(moved) if round(moved) != value else value + (1 if factor > 1 else -1)
    return min(max(moved, domain.low), domain.high)
