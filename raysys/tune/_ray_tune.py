"""Ray Tune's side of a search: it runs the trials that the ledger proposes, and tells it."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from raysys.tune._trial_process import run_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raysys import cluster
    from raysys.data import Table
    from raysys.tune._trial_ledger import Ledger

# Ray Tune's tables are for terminals, its files for its own resume; the ledger has both.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}


def run(
    name: str,
    ledger: Ledger,
    objective: Callable[..., None],
    tables: Mapping[str, Table],
    *,
    cpus: float,
    gpus: float,
    nested: cluster.Resources,
) -> None:
    """Run trials until the ledger has no more, or until Ctrl-C.

    Args:
        name: Of the search.
        ledger: Proposes and is told.
        objective: Called in the trials' processes.
        tables: Given to the objective.
        cpus: Of a trial's own process.
        gpus: Of a trial's own process.
        nested: What it may ask for beside that.
    """
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    log = logging.getLogger("ray.tune")
    level = log.level
    interrupt = signal.getsignal(signal.SIGINT)  # Ray Tune would keep it
    log.setLevel(logging.CRITICAL)  # it would tell of its own ways to resume
    numbers: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="raysys-") as scratch:
        trainable = tune.with_parameters(
            run_trial,
            objective=objective,
            tables=dict(tables),
            folder=ledger.folder,
            goal=ledger.plan.goal,
            nested=nested,
        )
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": cpus, "gpu": gpus}),
            tune_config=tune.TuneConfig(
                search_alg=_Proposals(ledger, numbers), num_samples=-1, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name=name.replace("/", "-"),
                storage_path=scratch,
                stop=_Decisions(ledger, numbers),
                callbacks=[_Deaths(ledger, numbers)],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            log.setLevel(level)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)


class _Told:
    """Knows the ledger; Ray Tune pickles what it is given, for a resume that is not used."""

    def __init__(self, ledger: Ledger, numbers: dict[str, int]) -> None:
        super().__init__()
        self._ledger, self._numbers = ledger, numbers

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Proposals(_Told, Searcher):
    """Asks the ledger for trials."""

    def suggest(self, trial_id: str) -> Any:
        found = self._ledger.next()
        if found == "wait":
            return None
        if found == "end":
            return Searcher.FINISHED
        self._numbers[trial_id] = found.number
        return {"trial": found.as_dict()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if not error:
            self._ledger.end(self._numbers[trial_id], None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is written down already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""


class _Decisions(_Told, Stopper):
    """Hands reports to the ledger, and its decisions back."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        # A trial without any report ends with an empty one.
        known = "failed" in result or "rounds" in result
        return known and self._ledger.take(self._numbers[trial_id], result)

    def stop_all(self) -> bool:
        return self._ledger.broken


class _Deaths(_Told, tune.Callback):
    """Tells the ledger of trials whose process died."""

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        known = str(trial.get_error() or "it was killed, or out of memory").strip()
        reason = f"its process died: {known.splitlines()[-1]}"
        self._ledger.end(self._numbers[trial.trial_id], reason)
