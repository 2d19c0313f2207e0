"""Execution of a search's trials by Ray Tune, controlled by the ledger."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from raysys.tune._trial_process import run_trial

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.tune._search_settings import TrialResources
    from raysys.tune._trial_ledger import TrialLedger

# Ray Tune's own tables and resume files are not used.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}


def run(
    name: str, ledger: TrialLedger, objective: Callable[..., None], tables: Mapping[str, Table],
    resources: TrialResources,
) -> None:  # fmt: skip
    """Run trials until the ledger has no more, or until Ctrl-C."""
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    log = logging.getLogger("ray.tune")
    level = log.level
    interrupt = signal.getsignal(signal.SIGINT)  # replaced by Ray Tune
    log.setLevel(logging.CRITICAL)  # it advises how to resume through Ray Tune
    numbers: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="raysys-") as scratch:
        trainable = tune.with_parameters(
            run_trial, objective=objective, tables=dict(tables), folder=ledger.folder,
            objectives=ledger.proposer.objectives, nested=resources.nested,
        )  # fmt: skip
        tuner = tune.Tuner(
            tune.with_resources(trainable, _demand(resources)),
            tune_config=tune.TuneConfig(
                search_alg=_LedgerSearcher(ledger, numbers), num_samples=-1, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name=name.replace("/", "-"),
                storage_path=scratch,
                stop=_LedgerStopper(ledger, numbers),
                callbacks=[_DeathCallback(ledger, numbers)],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            log.setLevel(level)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)


def _demand(resources: TrialResources) -> dict[str, float]:
    """Demand of a trial's process, which Ray Tune does not let be empty."""
    demand = {"cpu": resources.cpus, "gpu": resources.gpus}
    return demand if any(demand.values()) else {"memory": 1}


class _LedgerClient:
    """Holds the ledger, and pickles empty: Ray Tune pickles for a resume that is not used."""

    def __init__(self, ledger: TrialLedger, numbers: dict[str, int]) -> None:
        super().__init__()
        self._ledger, self._numbers = ledger, numbers

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _LedgerSearcher(_LedgerClient, Searcher):
    """Trials proposed by the ledger."""

    def suggest(self, trial_id: str) -> Any:
        trial = self._ledger.next_trial()
        if trial == "wait":
            return None
        if trial == "end":
            return Searcher.FINISHED
        self._numbers[trial_id] = trial.number
        return {"trial": trial.as_dict()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if not error:
            self._ledger.end(self._numbers[trial_id], None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to do: the ledger is in the storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to do."""


class _LedgerStopper(_LedgerClient, Stopper):
    """Reports for the ledger, and its decisions."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        # A trial without any report ends with an empty one.
        has_report = "failed" in result or "rounds" in result
        return has_report and self._ledger.record(self._numbers[trial_id], result)

    def stop_all(self) -> bool:
        return self._ledger.broken


class _DeathCallback(_LedgerClient, tune.Callback):
    """Trials whose process died, for the ledger."""

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        error = str(trial.get_error() or "it was killed, or out of memory").strip()
        reason = f"its process died: {error.splitlines()[-1]}"
        self._ledger.end(self._numbers[trial.trial_id], reason)
