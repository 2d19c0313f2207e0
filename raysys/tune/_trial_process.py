"""What an objective is given to report with, and how a trial runs in its process."""

from __future__ import annotations

import json
import math
import time
import traceback
from typing import TYPE_CHECKING, Any, Protocol

from raysys import cluster
from raysys.errors import RaysysError
from raysys.ray_internals import process
from raysys.tune._trial import CPU_SECONDS, SECONDS, Goal, Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import pyarrow as pa

    from raysys.data import Table
    from raysys.storage import Storage

_ROUNDS, _FILES = "rounds.json", "files"


class Report(Protocol):
    """Given to the objective; called after each round of training.

    A trial whose objective calls `resume` before its first round goes on from its last saved
    round when the search is taken up again; one that does not begins anew.

    Example:
        def objective(settings, tables, report):
            folder = report.resume()
            model = load(folder) if folder else new_model(settings)
            while report.done < ROUNDS:
                report({"loss": model.train()}, save=model.save)
    """

    @property
    def done(self) -> int:
        """How many rounds the trial has behind it."""

    def resume(self) -> Path | None:
        """The folder that `save` wrote last, to go on from; None at the beginning."""

    def __call__(
        self, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None
    ) -> None:
        """Hand over measurements of a round and, by `save`, write files for later.

        `save` is called in the rounds that are the trial's best so far, and in all rounds of an
        objective that calls `resume` or of a search for several measurements. What was written in
        the best round is the trial's checkpoint.
        """


def saved_path(number: int, round_: int) -> str:
    """Where in the search's folder a round's files are."""
    return f"trials/{number:05d}/round-{round_:05d}"


def saved_rounds(folder: Storage, number: int) -> list[int]:
    """The rounds whose files are there, ascending."""
    names = folder.names(f"trials/{number:05d}")
    rounds = [int(name.removeprefix("round-")) for name in names]
    return [round_ for round_ in rounds if folder.exists(saved_path(number, round_))]


def saved_files(number: int, round_: int) -> str:
    """Where in the search's folder the files are that the objective's `save` wrote."""
    return f"{saved_path(number, round_)}/{_FILES}"


def run_trial(
    config: dict[str, Any],
    objective: Callable[[dict[str, Any], Mapping[str, pa.Table], Report], None],
    tables: Mapping[str, Table],
    folder: Storage,
    goal: Goal,
    nested: cluster.Resources,
) -> None:
    """One trial from its start to its end; called by Ray Tune in a worker."""
    from ray import tune

    trial = Trial(**config["trial"])
    report = _Report(trial, folder, goal, tune.report)
    process.leave_placement_group()
    try:
        arrays = {name: table.to_arrow() for name, table in tables.items()}
        with cluster.share(nested):
            objective(dict(trial.settings), arrays, report)
        report.close()
    except Exception as error:
        traceback.print_exc()  # for the worker's log; the driver gets the last line
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename.rpartition('/')[2]}, line {place.lineno}"
        tune.report({"failed": f"{type(error).__name__}: {error} ({where})"})


class _Report:
    def __init__(
        self, trial: Trial, folder: Storage, goal: Goal, send: Callable[[dict[str, Any]], None]
    ) -> None:
        self._trial, self._folder, self._goal, self._send = trial, folder, goal, send
        self._resumes = False
        self._sent = 0
        self._spent = {SECONDS: 0.0, CPU_SECONDS: 0.0}
        self._started, self._started_cpu = time.perf_counter(), time.process_time()

    @property
    def done(self) -> int:
        return self._trial.done

    def resume(self) -> Path | None:
        trial = self._trial
        if trial.rounds:
            raise RaysysError("report.resume() comes too late: call it before the first round")
        self._resumes = True
        if own := saved_rounds(self._folder, trial.number):
            saved = self._folder.fetch(saved_path(trial.number, own[-1]))
            trial.rounds = json.loads((saved / _ROUNDS).read_text())
            self._spent = {key: trial.rounds[-1][key] for key in self._spent}
            return saved / _FILES
        if trial.parent is None:
            return None
        if trial.first not in saved_rounds(self._folder, trial.parent):
            raise RaysysError(
                f"trial {trial.parent} saved nothing in round {trial.first} that another could go "
                "on from: give report(..., save=...)"
            )
        return self._folder.fetch(saved_files(trial.parent, trial.first))

    def __call__(
        self, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None
    ) -> None:
        trial = self._trial
        if trial.parent is not None and not self._resumes:
            raise RaysysError(
                "a population's trials go on from each other, and this objective begins anew: "
                "let it call report.resume() before its first round"
            )
        spent = {
            SECONDS: self._spent[SECONDS] + time.perf_counter() - self._started,
            CPU_SECONDS: self._spent[CPU_SECONDS] + time.process_time() - self._started_cpu,
        }
        measured = {**spent, **{name: float(value) for name, value in metrics.items()}}
        for name in self._goal.metrics:
            if not math.isfinite(measured.get(name, math.nan)):
                raise RaysysError(
                    f"round {trial.done + 1} reported {dict(metrics)}, and the search judges by "
                    f"{name!r}: report a finite number for it"
                )
        trial.rounds.append(measured)
        best = self._goal.best_round(trial)
        if save and (self._resumes or best == trial.done):
            self._write(save, keep={best, trial.done})
        self.close()

    def close(self) -> None:
        """Send the rounds that have not been sent: the last one, and those taken up again."""
        unsent = self._trial.rounds[self._sent :]
        if unsent:
            self._sent = len(self._trial.rounds)
            self._send({"rounds": unsent, "done_rounds": self._trial.done})

    def _write(self, save: Callable[[Path], None], keep: set[int]) -> None:
        number = self._trial.number
        # In one folder, so that the files and the curve that led to them appear together.
        with self._folder.new_dir(saved_path(number, self._trial.done)) as staged:
            (staged / _FILES).mkdir()
            save(staged / _FILES)
            (staged / _ROUNDS).write_text(json.dumps(self._trial.rounds))
        for old in saved_rounds(self._folder, number):
            if old not in keep:
                self._folder.remove(saved_path(number, old))
