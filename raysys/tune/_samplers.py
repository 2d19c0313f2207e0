"""Models of what is known, in Optuna's terms."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raysys.tune._space import Choice, Float, Space, enough, sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.tune._trial import Goal, Trial

_RANDOM_SHARE = 1 / 3


def bayesian(
    kind: Literal["tpe", "gp"], space: Space, goal: Goal, known: Sequence[Trial], seed: int
) -> dict[str, Any]:
    """Settings by the tree-structured Parzen estimator or by a Gaussian process.

    (Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011; Snoek et al., "Practical
    Bayesian Optimization of Machine Learning Algorithms", 2012.) Trials that were stopped early
    count with the score that they would have come to if they had gained from there what the
    others gained on average.
    """
    judged = [(trial, values) for trial in known if (values := _outlook(trial, known, goal))]
    running = [trial for trial in known if trial.state == "running"]
    return _ask(kind, space, len(goal.metrics), judged, running, seed)


def bohb(space: Space, goal: Goal, known: Sequence[Trial], seed: int) -> dict[str, Any]:
    """Settings by a Parzen estimator of the scores at one round, a third of them at random.

    The round is the latest that enough trials have reached: two more than there are settings.
    (Falkner, Klein & Hutter, "BOHB: Robust and Efficient Hyperparameter Optimization at Scale",
    2018, section 3.)
    """
    rng = np.random.default_rng(seed)
    reached = sorted((trial.done for trial in known if trial.rounds), reverse=True)
    needed = enough(space)
    if rng.random() < _RANDOM_SHARE or len(reached) < needed:
        return sample(space, rng)
    level = reached[needed - 1]
    judged = [
        (trial, (merit,))
        for trial in known
        if trial.done >= level and (merit := goal.merit(trial, level)) is not None
    ]
    return _ask("tpe", space, 1, judged, [], int(rng.integers(2**31)))


def _outlook(trial: Trial, known: Sequence[Trial], goal: Goal) -> tuple[float, ...] | None:
    """What a trial counts with; None for one that is running or left nothing."""
    if trial.state in ("running", "failed") or not trial.rounds:
        return None
    if not goal.single:
        return goal.merits(goal.measured(trial))
    merit = goal.merit(trial)
    assert merit is not None
    if trial.state == "stopped":
        gains = [
            final - then
            for other in known
            if other.state == "finished"
            and other.done > trial.done
            and (then := goal.merit(other, trial.done)) is not None
            and (final := goal.merit(other)) is not None
        ]
        merit += float(np.mean(gains)) if gains else 0.0
    return (merit,)


def _ask(
    kind: Literal["tpe", "gp"],
    space: Space,
    objectives: int,
    judged: Sequence[tuple[Trial, tuple[float, ...]]],
    running: Sequence[Trial],
    seed: int,
) -> dict[str, Any]:
    """One proposal of a sampler that is told all that is known, in the order of the trials."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(logging.ERROR)
    domains = {name: _distribution(domain) for name, domain in space.items()}
    with warnings.catch_warnings():
        # `multivariate` is marked experimental, and has been for years.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler: Any
        if kind == "gp":
            sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)
        else:
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True)
    study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)
    for trial, values in judged:
        params = _encoded(space, trial.settings)
        study.add_trial(create_trial(params=params, distributions=domains, values=list(values)))
    for trial in running:
        params = _encoded(space, trial.settings)
        state = TrialState.RUNNING
        study.add_trial(create_trial(params=params, distributions=domains, state=state))
    params = study.ask(domains).params
    return {
        name: domain.values[params[name]] if isinstance(domain, Choice) else params[name]
        for name, domain in space.items()
    }


def _distribution(domain: Any) -> Any:
    from optuna import distributions

    if isinstance(domain, Choice):
        return distributions.CategoricalDistribution(range(len(domain.values)))
    if isinstance(domain, Float):
        return distributions.FloatDistribution(domain.low, domain.high, log=domain.log)
    return distributions.IntDistribution(domain.low, domain.high, log=domain.log)


def _encoded(space: Space, settings: dict[str, Any]) -> dict[str, Any]:
    """Choices as their places, for Optuna takes plain values alone."""
    return {
        name: domain.values.index(settings[name]) if isinstance(domain, Choice) else settings[name]
        for name, domain in space.items()
    }
