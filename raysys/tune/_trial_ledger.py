"""The ledger of a search: its trials and when they end, recorded in the storage root."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from raysys.console import say
from raysys.errors import RaysysError
from raysys.identity import RunIdentity
from raysys.storage import Storage, read_record
from raysys.tune._search_settings import Population
from raysys.tune._space import Space, params_from_json
from raysys.tune._trial import Trial
from raysys.tune._trial_process import saved_path, saved_rounds

if TYPE_CHECKING:
    from raysys.tune._proposer import Proposer
    from raysys.tune._search_settings import SearchLimits, TrialResources

FOLDER = "searches"
_WARM_START = "warm_start.json"
BUDGET_SPENT = "the budget is spent"


class TrialLedger:
    """The only place where the trials of a search change.

    Each trial is a file, written when it is proposed and when it ends. Since proposals and early
    stopping depend on the trials alone, a search whose driver died resumes from the files.
    """

    def __init__(
        self, folder: Storage, proposer: Proposer, n_trials: int | None, limits: SearchLimits,
        resources: TrialResources, on_end: Callable[[Trial], None],
    ) -> None:  # fmt: skip
        """Read the trials in the folder of the search; `on_end` is called with each that ends."""
        self.folder, self.proposer = folder, proposer
        self.warm_start: list[Trial] = []
        self._limits, self._resources, self._on_end = limits, resources, on_end
        counts = [count for count in (n_trials, proposer.max_trials) if count is not None]
        self.max_trials = min(counts, default=None)
        fifth = max(1, (n_trials or proposer.max_trials or 15) // 5)
        self.max_failed = fifth if limits.max_failed_trials is None else limits.max_failed_trials
        self.trials = {trial.number: trial for trial in read_trials(folder, proposer.space)}
        # A search that ended by failures tries the failed trials again.
        repeated = {"running", "failed"} if self.broken else {"running"}
        self._waiting = [trial for trial in self.trials.values() if trial.state in repeated]
        for trial in self._waiting:
            trial.state, trial.reason, trial.certain, trial.rounds = "running", None, False, []
            trial.traceback = ""
        times = [(trial.ended or trial.started) for trial in self.trials.values()]
        self._before, self._opened = max(times, default=0.0), time.monotonic()

    @property
    def now(self) -> float:
        """Seconds of this search, without the time in which no driver ran."""
        return self._before + time.monotonic() - self._opened

    @property
    def failed(self) -> list[Trial]:
        """Trials that failed."""
        return [trial for trial in self.trials.values() if trial.state == "failed"]

    @property
    def broken(self) -> bool:
        """Whether more than `max_failed` trials failed, all of them, or one by a certain error."""
        failed = len(self.failed)
        certain = any(trial.certain for trial in self.failed)
        return certain or failed > self.max_failed or 0 < failed == self.max_trials

    @property
    def unfinished(self) -> list[Trial]:
        """Trials that are running or wait to be run again."""
        return [trial for trial in self.trials.values() if trial.state == "running"]

    @property
    def complete(self) -> bool:
        """Whether no trial is left to run."""
        return not self.unfinished and (self.broken or self._ended)

    @property
    def _ended(self) -> bool:
        return self._spent or (self.max_trials is not None and len(self.trials) >= self.max_trials)

    @property
    def _spent(self) -> bool:
        now, waiting = self.now, {trial.number for trial in self._waiting}
        trial_seconds = sum(
            (now if trial.ended is None else trial.ended) - trial.started
            for trial in self.trials.values()
            if trial.number not in waiting
        )
        return self._limits.reached(now, trial_seconds, self._resources.total)

    def next_trial(self) -> Trial | Literal["wait", "end"]:
        """The trial to start now, if any."""
        if len(self.unfinished) - len(self._waiting) >= self._resources.max_concurrent:
            return "wait"
        if self._waiting:
            trial = self._waiting.pop(0)
        elif self.broken or self._ended:
            return "end"
        else:
            # The first free one: a damaged trial may have been removed.
            number = next(n for n in itertools.count() if n not in self.trials)
            proposal = self.proposer.propose(number, self.trials, self.warm_start)
            if proposal is None:
                return "wait"
            parent = proposal.parent
            start_round = 0 if parent is None else self.trials[parent].last_round
            trial = Trial(number, proposal.params, parent=parent, start_round=start_round)
            self.trials[number] = trial
        trial.started, trial.ended = self.now, None
        self._write(trial)
        return trial

    def record(self, number: int, report: Mapping[str, Any]) -> bool:
        """Record a report, `rounds` and `last_round` or `failed`; whether to stop the trial.

        A failure that is `certain` whatever the parameters ends the search, unless another trial
        has shown otherwise. Rounds already recorded are ignored: Ray Tune repeats a trial's last
        report at its end.
        """
        trial = self.trials[number]
        if trial.state != "running":
            return True
        if "failed" in report:
            continues = trial.parent is not None
            trial.certain = report.get("certain", False) and not any(
                earlier.rounds
                for earlier in self.trials.values()
                if (earlier.parent is not None) == continues
            )
            trial.traceback = report.get("traceback", "")
            self._end(trial, "failed", report["failed"])
        elif report["last_round"] > trial.last_round:
            for metrics in report["rounds"]:
                trial.rounds.append(metrics)
                self._stop_if_due(trial)
                if trial.state != "running":
                    break
        return trial.state != "running"

    def end(self, number: int, reason: str | None) -> None:
        """Record that a trial's function returned, or the reason why its process died."""
        trial = self.trials[number]
        if trial.state != "running" or self.broken:
            return
        if reason is None and not trial.rounds:
            reason = "it reported nothing: let the objective call report({...})"
        self._end(trial, "failed" if reason else "finished", reason)

    def _stop_if_due(self, trial: Trial) -> None:
        """End a trial that has just completed a round, if it is to end there."""
        halving, objectives = self.proposer.halving, self.proposer.objectives
        if trial.last_round >= self.proposer.final_round(trial):
            self._end(trial, "finished")
        elif halving and halving.should_stop(trial, self.trials.values(), objectives):
            self._end(trial, "stopped")
        elif self._spent:
            self._end(trial, "stopped", BUDGET_SPENT)

    def _end(
        self, trial: Trial, state: Literal["finished", "stopped", "failed"],
        reason: str | None = None,
    ) -> None:  # fmt: skip
        trial.state, trial.reason, trial.ended = state, reason, self.now
        self._write(trial)
        self._remove_checkpoints()
        self._on_end(trial)

    def _write(self, trial: Trial) -> None:
        self.folder.write_json(f"trials/{trial.number:05d}.json", trial.as_dict())

    def _remove_checkpoints(self) -> None:
        """Keep the files of the best trials, and of those that others may continue from."""
        trials = list(self.trials.values())
        objectives, method = self.proposer.objectives, self.proposer.sampler.method
        keep = {trial.number for trial in objectives.pareto_front(trials)}
        keep |= {trial.number for trial in trials if trial.state == "running"}
        if isinstance(method, Population):
            keep |= set(range((len(trials) // method.size - 1) * method.size, len(trials)))
        for name in self.folder.names("trials"):
            if not name.endswith(".json") and int(name) not in keep:
                for round_ in saved_rounds(self.folder, int(name)):
                    self.folder.remove(saved_path(int(name), round_))
                if self.folder.is_local:
                    self.folder.remove(f"trials/{name}")

    def check_identity(
        self, name: str, identity: Mapping[str, Any], warm_start: Sequence[Trial]
    ) -> None:
        """Record what defines a new search, or check that a resumed one is the same.

        A resumed search keeps the `warm_start`, trials of earlier searches, of its first call.

        Raises:
            RaysysError: The name belongs to a search with another identity.
        """
        remedy = f"Sampler(warm_start=[{name!r}]) lets another search learn from it"
        RunIdentity(identity).claim(self.folder, "", f"search {name!r}", remedy=remedy)
        space = self.proposer.space
        written = read_record(
            self.folder, _WARM_START, lambda trials: [_decoded(fields, space) for fields in trials]
        )
        if written is None:
            self.folder.write_json(_WARM_START, [trial.as_dict() for trial in warm_start])
            self.warm_start = list(warm_start)
        else:
            self.warm_start = written


def read_trials(folder: Storage, space: Space) -> list[Trial]:
    """Trials in a search's folder, by number.

    Raises:
        StorageError: A trial's file is damaged.
    """
    paths = [f"trials/{name}" for name in folder.names("trials") if name.endswith(".json")]
    remedy = "remove it, and the search runs another trial in its place"
    trials = [
        read_record(folder, path, lambda fields: _decoded(fields, space), remedy=remedy)
        for path in paths
    ]
    return [trial for trial in trials if trial is not None]


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


def _decoded(fields: dict[str, Any], space: Space) -> Trial:
    return Trial(**{**fields, "params": params_from_json(space, fields["params"])})
