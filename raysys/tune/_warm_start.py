"""Trials of earlier searches that a search learns from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysys.console import say
from raysys.errors import RaysysError
from raysys.storage import Storage
from raysys.tune._trial_ledger import read_trials

if TYPE_CHECKING:
    from raysys.tune._proposer import Proposer
    from raysys.tune._trial import Trial

FOLDER = "searches"


def warm_start_trials(name: str, proposer: Proposer, storage: Storage) -> list[Trial]:
    """Usable trials of the searches that the sampler's `warm_start` names.

    Raises:
        RaysysError: A search has no trials.
    """
    usable = []
    for source in proposer.sampler.warm_start:
        if isinstance(source, str):
            label, is_uri = source, "://" in source or source.startswith("/")
            folder = Storage(source if is_uri else storage.uri(f"{FOLDER}/{source}"))
            trials = read_trials(folder, proposer.space)
            if not trials:
                raise RaysysError(
                    f"warm_start={source!r}: no trials in {folder.root}; check the name"
                )
        else:
            label, trials = source.name, source.trials
        fitting = [trial for trial in trials if _fits(trial, proposer)]
        say(
            f"[{name}] learns from {len(fitting)} of {len(trials)} trials of {label}; the rest "
            "failed, or have parameters or metrics outside this search"
        )
        usable += fitting
    return usable


def _fits(trial: Trial, proposer: Proposer) -> bool:
    return (
        trial.state in ("finished", "stopped")
        and bool(trial.rounds)
        and trial.params.keys() == proposer.space.keys()
        and all(value in proposer.space[key] for key, value in trial.params.items())
        and all(metric in trial.rounds[-1] for metric in proposer.objectives.directions)
    )
