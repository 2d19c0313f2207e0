"""Bayesian samplers: Optuna's models of the trials so far."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raysys.imports import lazy_import
from raysys.tune._space import Choice, Domain, Float, Space, n_startup_trials, random_params

if TYPE_CHECKING:
    from raysys.tune._objectives import Objectives
    from raysys.tune._trial import Trial

optuna = lazy_import("optuna")

_RANDOM_SHARE = 1 / 3


def bayesian(
    kind: Literal["tpe", "gp"], space: Space, objectives: Objectives, trials: Sequence[Trial],
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Parameters by the tree-structured Parzen estimator or by a Gaussian process.

    (Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011; Snoek et al., "Practical
    Bayesian Optimization of Machine Learning Algorithms", 2012.) Trials that were stopped early
    count with an extrapolated score: their own plus the mean gain of finished trials from the same
    round on.
    """
    scored = [
        (trial, scores)
        for trial in trials
        if (scores := _extrapolated(trial, trials, objectives)) is not None
    ]
    running = [trial for trial in trials if trial.state == "running"]
    return _ask(kind, space, len(objectives.directions), scored, running, seed)


def bohb(
    space: Space, objectives: Objectives, trials: Sequence[Trial], seed: int
) -> dict[str, Any]:
    """Parameters by a Parzen estimator of the scores at one round, a third of them at random.

    The round is the latest that enough trials have reached (Falkner, Klein & Hutter, "BOHB: Robust
    and Efficient Hyperparameter Optimization at Scale", 2018, section 3).
    """
    rng = np.random.default_rng(seed)
    reached = sorted((trial.last_round for trial in trials if trial.rounds), reverse=True)
    needed = n_startup_trials(space)
    if rng.random() < _RANDOM_SHARE or len(reached) < needed:
        return random_params(space, rng)
    level = reached[needed - 1]
    scored = [
        (trial, (score,))
        for trial in trials
        if trial.last_round >= level and (score := objectives.best_score(trial, level)) is not None
    ]
    return _ask("tpe", space, 1, scored, [], int(rng.integers(2**31)))


def _extrapolated(
    trial: Trial, trials: Sequence[Trial], objectives: Objectives
) -> tuple[float, ...] | None:
    """Scores of a trial at its end; None if it is running, failed or without rounds."""
    if trial.state in ("running", "failed") or not trial.rounds:
        return None
    if not objectives.single:
        return objectives.scores(objectives.metrics(trial))
    score = objectives.best_score(trial)
    assert score is not None
    if trial.state == "stopped":
        gains = [
            final - then
            for peer in trials
            if peer.state == "finished"
            and peer.last_round > trial.last_round
            and (then := objectives.best_score(peer, trial.last_round)) is not None
            and (final := objectives.best_score(peer)) is not None
        ]
        score += float(np.mean(gains)) if gains else 0.0
    return (score,)


def _ask(
    kind: Literal["tpe", "gp"], space: Space, n_objectives: int,
    scored: Sequence[tuple[Trial, tuple[float, ...]]], running: Sequence[Trial], seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Proposal of a sampler that has seen all trials, in their order."""
    optuna.logging.set_verbosity(logging.ERROR)
    domains = {name: _distribution(domain) for name, domain in space.items()}
    with warnings.catch_warnings():
        # `multivariate` has been marked experimental for years.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if kind == "gp":
            sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)
        else:
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True)
    study = optuna.create_study(directions=["maximize"] * n_objectives, sampler=sampler)

    def frozen(trial: Trial, **outcome: Any) -> Any:
        params = _encoded(space, trial.params)
        return optuna.trial.create_trial(params=params, distributions=domains, **outcome)

    study.add_trials([frozen(trial, values=list(scores)) for trial, scores in scored])
    study.add_trials([frozen(trial, state=optuna.trial.TrialState.RUNNING) for trial in running])
    params = study.ask(domains).params
    return {
        name: domain.values[params[name]] if isinstance(domain, Choice) else params[name]
        for name, domain in space.items()
    }


def _distribution(domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return optuna.distributions.CategoricalDistribution(range(len(domain.values)))
    if isinstance(domain, Float):
        return optuna.distributions.FloatDistribution(domain.low, domain.high, log=domain.log)
    return optuna.distributions.IntDistribution(domain.low, domain.high, log=domain.log)


def _encoded(space: Space, params: dict[str, Any]) -> dict[str, Any]:
    """Choices as indices, since Optuna takes plain values only."""
    return {
        name: domain.values.index(params[name]) if isinstance(domain, Choice) else params[name]
        for name, domain in space.items()
    }
