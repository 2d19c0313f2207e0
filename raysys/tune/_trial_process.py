"""A trial in its worker process, and what its objective reports to."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from raysys import cluster
from raysys.errors import RaysysError, ReservationError
from raysys.imports import lazy_import
from raysys.ray_internals import process
from raysys.storage import read_record
from raysys.train import EpochMetrics, StateDict, save_state_dict, train_in_process
from raysys.tune._trial import CPU_SECONDS, SECONDS, Trial

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.storage import Storage
    from raysys.train import TrainingTask, TrainSettings
    from raysys.tune._objectives import Objectives

ray_tune = lazy_import("ray.tune")

_ROUNDS, _FILES = "rounds.json", "files"


class ObjectiveError(RaysysError):
    """An objective that does not fit its search, whatever the parameters."""


def saved_path(number: int, round_: int) -> str:
    """Path of a round's files in the search's folder."""
    return f"trials/{number:05d}/round-{round_:05d}"


def saved_rounds(folder: Storage, number: int) -> list[int]:
    """Rounds with saved files, ascending."""
    names = folder.names(f"trials/{number:05d}")
    rounds = [int(name.removeprefix("round-")) for name in names]
    return [round_ for round_ in rounds if folder.exists(saved_path(number, round_))]


def checkpoint_path(number: int, round_: int) -> str:
    """Path in the search's folder of the files that the objective's `save` wrote."""
    return f"{saved_path(number, round_)}/{_FILES}"


class TrialReporter(Protocol):
    """Third argument of an objective; called after each round of training.

    A trial whose objective calls `resume` before its first round resumes from its last saved
    round when the search is resumed; otherwise it starts anew.

    Example:
        def objective(params, tables, report):
            folder = report.resume()
            model = load(folder) if folder else new_model(params)
            while report.last_round < ROUNDS:
                report({"loss": model.train()}, save=model.save)
    """

    @property
    def last_round(self) -> int:
        """Number of rounds that the trial has completed."""

    def resume(self) -> Path | None:
        """Folder last written by `save`; None for a trial that starts anew.

        Raises:
            ObjectiveError: A round was reported before, or the parent saved nothing.
        """

    def __call__(
        self, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None
    ) -> None:
        """Report the metrics of a round and, by `save`, write a checkpoint.

        `save` is called in the rounds that are the trial's best so far, and in all rounds of an
        objective that calls `resume` or of a search for several metrics. The files of the best
        round are the trial's checkpoint.

        Raises:
            RaysysError: A metric of the search is missing (an ObjectiveError) or not finite.
        """


Objective = Callable[[dict[str, Any], Mapping[str, pa.Table], TrialReporter], None]


def training(make: Callable[[dict[str, Any]], tuple[TrainingTask, TrainSettings]]) -> Objective:
    """Objective for `search` that trains a task in the trial's process.

    Each epoch is a round; the weights of the best one are the trial's checkpoint, for
    `raysys.train.load_state_dict`.

    Args:
        make: Function from proposed parameters to a task and its training settings.
    """

    def objective(
        params: dict[str, Any], tables: Mapping[str, pa.Table], report: TrialReporter
    ) -> None:
        def on_epoch(metrics: EpochMetrics, parameters: StateDict) -> None:
            report(metrics, save=functools.partial(save_state_dict, parameters))

        task, settings = make(params)
        train_in_process(task, tables, settings, on_epoch)

    return objective


def run_trial(
    config: dict[str, Any], objective: Objective, tables: Mapping[str, Table], folder: Storage,
    objectives: Objectives, nested: cluster.Resources,
) -> None:  # fmt: skip
    """Run one trial; called by Ray Tune in a worker."""
    trial = Trial(**config["trial"])
    report = _WorkerReporter(trial, folder, objectives, nested.cpus)
    process.leave_placement_group()
    try:
        arrays = {name: table.to_arrow() for name, table in tables.items()}
        remedy = "search(..., resources=TrialResources(nested={}))"
        with cluster.share(nested, "the search", remedy):
            objective(dict(trial.params), arrays, report)
        report.send()
    except BaseException as error:  # an objective may call sys.exit
        is_end = report.is_stopped or isinstance(error, KeyboardInterrupt)
        if is_end or process.is_ray_exit(error):
            raise
        certain = isinstance(error, ReservationError | ObjectiveError)
        failure = {"failed": cluster.error_line(error), "certain": certain}
        ray_tune.report({**failure, "traceback": cluster.error_traceback(error)})


class _WorkerReporter:
    def __init__(
        self, trial: Trial, folder: Storage, objectives: Objectives, nested_cpus: float
    ) -> None:
        self._trial, self._folder, self._objectives = trial, folder, objectives
        self._nested_cpus = nested_cpus
        self._resumes = self.is_stopped = False
        self._sent = 0
        self._spent = {SECONDS: 0.0, CPU_SECONDS: 0.0}
        self._started, self._started_cpu = time.perf_counter(), time.process_time()

    @property
    def last_round(self) -> int:
        return self._trial.last_round

    def resume(self) -> Path | None:
        trial = self._trial
        if trial.rounds:
            raise ObjectiveError("report.resume() comes too late: call it before the first round")
        self._resumes = True
        if own := saved_rounds(self._folder, trial.number):
            path = saved_path(trial.number, own[-1])
            remedy = f"remove {self._folder.uri(path)}, and the trial resumes from an earlier round"
            trial.rounds = read_record(self._folder, f"{path}/{_ROUNDS}", list, remedy=remedy) or []
            saved = self._folder.fetch(path)
            self._spent = {key: trial.rounds[-1][key] for key in self._spent}
            return saved / _FILES
        if trial.parent is None:
            return None
        if trial.start_round not in saved_rounds(self._folder, trial.parent):
            raise ObjectiveError(
                f"trial {trial.parent} saved no checkpoint in round {trial.start_round} to "
                "continue from: give report(..., save=...)"
            )
        return self._folder.fetch(checkpoint_path(trial.parent, trial.start_round))

    def __call__(
        self, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None
    ) -> None:
        trial = self._trial
        if trial.parent is not None and not self._resumes:
            raise ObjectiveError(
                "the trials of a population continue each other, and this objective starts anew: "
                "let it call report.resume() before its first round"
            )
        seconds = time.perf_counter() - self._started
        cpu_seconds = time.process_time() - self._started_cpu + self._nested_cpus * seconds
        spent = {
            SECONDS: self._spent[SECONDS] + seconds,
            CPU_SECONDS: self._spent[CPU_SECONDS] + cpu_seconds,
        }
        measured = {**spent, **{name: float(value) for name, value in metrics.items()}}
        for name in self._objectives.directions:
            if not math.isfinite(measured.get(name, math.nan)):
                error = RaysysError if name in measured else ObjectiveError
                raise error(
                    f"round {trial.last_round + 1} reported {dict(metrics)}, and the search "
                    f"optimizes {name!r}: report a finite number for it"
                )
        trial.rounds.append(measured)
        best = self._objectives.best_round(trial)
        if save and (self._resumes or best == trial.last_round):
            self._write(save, keep={best, trial.last_round})
        self.send()

    def send(self) -> None:
        """Send the rounds that have not been sent: the last one, and those resumed from."""
        if unsent := self._trial.rounds[self._sent :]:
            self._sent = len(self._trial.rounds)
            try:
                ray_tune.report({"rounds": unsent, "last_round": self._trial.last_round})
            except SystemExit:  # so Ray Tune ends a trial that was stopped
                self.is_stopped = True
                raise

    def _write(self, save: Callable[[Path], None], keep: set[int]) -> None:
        number = self._trial.number
        # One folder, so that the files and the rounds that led to them appear together.
        with self._folder.new_dir(saved_path(number, self._trial.last_round)) as staged:
            (staged / _FILES).mkdir()
            save(staged / _FILES)
            (staged / _ROUNDS).write_text(json.dumps(self._trial.rounds))
        for old in saved_rounds(self._folder, number):
            if old not in keep:
                self._folder.remove(saved_path(number, old))
