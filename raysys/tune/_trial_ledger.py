"""The trials of a search: which come next, when they end, and their records in the storage root."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from raysys.identity import RunIdentity
from raysys.tune._searchers import Plan, Population
from raysys.tune._space import Space, of_json
from raysys.tune._trial import Trial
from raysys.tune._trial_process import saved_path, saved_rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raysys.storage import Storage

_EARLIER = "earlier.json"
BUDGET_SPENT = "the budget is spent"


@dataclass(frozen=True)
class Budget:
    """When a search ends; whichever comes first.

    Attributes:
        trials: How many.
        seconds: Wall clock, over all calls.
        cpu_hours: Logical CPUs that trials hold, their nested workers' among them, times hours.
        gpu_hours: The same with GPUs.
        cpus: That a trial holds.
        gpus: That a trial holds.
        failed: How many trials may fail.
    """

    trials: int | None
    seconds: float | None
    cpu_hours: float | None
    gpu_hours: float | None
    cpus: float
    gpus: float
    failed: int

    def spent(self, seconds: float, trial_seconds: float) -> bool:
        """Whether time is up.

        Args:
            seconds: Wall clock of the search.
            trial_seconds: Wall clock of all its trials together.
        """
        hours = trial_seconds / 3600
        return (
            (self.seconds is not None and seconds >= self.seconds)
            or (self.cpu_hours is not None and hours * self.cpus >= self.cpu_hours)
            or (self.gpu_hours is not None and hours * self.gpus >= self.gpu_hours)
        )


class Ledger:
    """The one place where a search's trials change.

    Each trial is a file, written whole when it is proposed and when it ends. Since proposals and
    early stopping depend on the trials alone, a search whose driver died goes on from the files.
    """

    def __init__(
        self,
        folder: Storage,
        plan: Plan,
        budget: Budget,
        concurrency: int,
        on_end: Callable[[Trial], None],
    ) -> None:
        """Take up the trials that are there.

        Args:
            folder: Of the search.
            plan: How it proposes.
            budget: When it ends.
            concurrency: Trials at a time.
            on_end: Told of each trial that ends.
        """
        self.folder, self.plan, self.budget = folder, plan, budget
        self.earlier: list[Trial] = []
        self._concurrency, self._on_end = concurrency, on_end
        self.trials = {trial.number: trial for trial in read_trials(folder, plan.space)}
        # A search that ended by its failures gets another chance with them.
        again = {"running", "failed"} if self.broken else {"running"}
        self._waiting = [trial for trial in self.trials.values() if trial.state in again]
        for trial in self._waiting:
            trial.state, trial.reason, trial.rounds = "running", None, []
        times = [(trial.ended or trial.started) for trial in self.trials.values()]
        self._before, self._opened = max(times, default=0.0), time.monotonic()

    @property
    def now(self) -> float:
        """Seconds of this search, without the time in which no driver ran."""
        return self._before + time.monotonic() - self._opened

    @property
    def failed(self) -> list[Trial]:
        """The trials that failed."""
        return [trial for trial in self.trials.values() if trial.state == "failed"]

    @property
    def broken(self) -> bool:
        """Whether more trials failed than may, or all that there are to be."""
        failed = len(self.failed)
        return failed > self.budget.failed or 0 < failed == self._most

    @property
    def unfinished(self) -> list[Trial]:
        """Trials that are running or wait to be run again."""
        return [trial for trial in self.trials.values() if trial.state == "running"]

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        return not self.unfinished and (self.broken or self._ended)

    @property
    def _most(self) -> int | None:
        limits = [most for most in (self.budget.trials, self.plan.most) if most is not None]
        return min(limits, default=None)

    @property
    def _ended(self) -> bool:
        return self._spent or (self._most is not None and len(self.trials) >= self._most)

    @property
    def _spent(self) -> bool:
        now, waiting = self.now, {trial.number for trial in self._waiting}
        held = sum(
            (now if trial.ended is None else trial.ended) - trial.started
            for trial in self.trials.values()
            if trial.number not in waiting
        )
        return self.budget.spent(now, held)

    def next(self) -> Trial | Literal["wait", "end"]:
        """The trial to start now, if one is."""
        if len(self.unfinished) - len(self._waiting) >= self._concurrency:
            return "wait"
        if self._waiting:
            trial = self._waiting.pop(0)
        elif self.broken or self._ended:
            return "end"
        else:
            number = len(self.trials)
            start = self.plan.propose(number, self.trials, self.earlier)
            if start is None:
                return "wait"
            first = 0 if start.parent is None else self.trials[start.parent].done
            trial = Trial(number, start.settings, parent=start.parent, first=first)
            self.trials[number] = trial
        trial.started, trial.ended = self.now, None
        self._write(trial)
        return trial

    def take(self, number: int, reported: Mapping[str, Any]) -> bool:
        """Take note of what a trial reported; whether it is to be stopped.

        What was reported before is ignored: Ray Tune repeats a trial's last report at its end.
        """
        trial = self.trials[number]
        if trial.state != "running":
            return True
        if "failed" in reported:
            self._end(trial, "failed", reported["failed"])
        elif reported["done_rounds"] > trial.done:
            for measured in reported["rounds"]:
                trial.rounds.append(measured)
                if self._judge(trial):
                    break
        return trial.state != "running"

    def end(self, number: int, reason: str | None) -> None:
        """Take note that a trial's function returned, or that its process died of a reason."""
        trial = self.trials[number]
        if trial.state != "running" or self.broken:
            return
        if reason is None and not trial.rounds:
            reason = "it reported nothing: let the objective call report({...})"
        self._end(trial, "failed" if reason else "finished", reason)

    def _judge(self, trial: Trial) -> bool:
        """End a trial that has just ended a round, if it is to end there."""
        if trial.done >= self.plan.last_round(trial):
            self._end(trial, "finished")
        elif self.plan.halving and self.plan.halving.behind(
            trial, self.trials.values(), self.plan.goal
        ):
            self._end(trial, "stopped")
        elif self._spent:
            self._end(trial, "stopped", BUDGET_SPENT)
        return trial.state != "running"

    def _end(
        self, trial: Trial, state: Literal["finished", "stopped", "failed"],
        reason: str | None = None,
    ) -> None:  # fmt: skip
        trial.state, trial.reason, trial.ended = state, reason, self.now
        self._write(trial)
        self._remove_old()
        self._on_end(trial)

    def _write(self, trial: Trial) -> None:
        self.folder.write_json(f"trials/{trial.number:05d}.json", trial.as_dict())

    def _remove_old(self) -> None:
        """Keep the files of the best trials, and of those that others may go on from."""
        trials = list(self.trials.values())
        goal, searcher = self.plan.goal, self.plan.searcher
        best = [goal.best(trials)] if goal.single else goal.front(trials)
        keep = {trial.number for trial in best if trial}
        keep |= {trial.number for trial in trials if trial.state == "running"}
        if isinstance(searcher, Population):
            keep |= set(range((len(trials) // searcher.size - 1) * searcher.size, len(trials)))
        for name in self.folder.names("trials"):
            if not name.endswith(".json") and int(name) not in keep:
                for round_ in saved_rounds(self.folder, int(name)):
                    self.folder.remove(saved_path(int(name), round_))
                if self.folder.is_local:
                    self.folder.remove(f"trials/{name}")


def read_trials(folder: Storage, space: Space) -> list[Trial]:
    """The trials that a search's folder has, by number."""
    found = []
    for name in folder.names("trials"):
        if name.endswith(".json"):
            written = json.loads(folder.read_bytes(f"trials/{name}") or b"")
            found.append(_trial(written, space))
    return found


def _trial(written: dict[str, Any], space: Space) -> Trial:
    return Trial(**{**written, "settings": of_json(space, written["settings"])})


def begin(name: str, ledger: Ledger, facts: Mapping[str, Any], earlier: Sequence[Trial]) -> None:
    """Write down what a search is, or check that it is still the same.

    Args:
        name: Of the search.
        ledger: Gets the trials of earlier searches, as they were when the search began.
        facts: What must not change.
        earlier: Trials of other searches, told at the beginning.

    Raises:
        RaysysError: The same name was searched with something else.
    """
    remedy = f"earlier=[{name!r}] lets another search learn from it"
    RunIdentity(facts).claim(ledger.folder, "", f"search {name!r}", remedy=remedy)
    written = ledger.folder.read_bytes(_EARLIER)
    if written is None:
        ledger.folder.write_json(_EARLIER, [trial.as_dict() for trial in earlier])
        ledger.earlier = list(earlier)
    else:
        ledger.earlier = [_trial(values, ledger.plan.space) for values in json.loads(written)]
