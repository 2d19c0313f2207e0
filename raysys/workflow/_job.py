"""A job: its steps, their order and keys, and the record of a run."""

from __future__ import annotations

import json
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raysys import cluster
from raysys.arguments import checked
from raysys.console import say
from raysys.errors import RaysysError, StorageError
from raysys.identity import digest
from raysys.storage import Storage
from raysys.telemetry import NodeMeter
from raysys.tracking import TrackedRun, git_commit, open_run, package_versions
from raysys.workflow._diagram import draw_record
from raysys.workflow._execution import Execution
from raysys.workflow._run_context import Notes
from raysys.workflow._step import Step, check_name, check_no_hidden_step, step_name, with_results
from raysys.workflow._step_results import StepResult, load, require_intact
from raysys.workflow._step_task import Costs

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass
class StepProgress:
    """Progress of a step.

    Attributes:
        state: "waiting", "running", "done", "skipped" (an earlier result was taken), "failed".
        key: Digest of its code, parameters and inputs, once the inputs are computed.
        result: Stored result.
        notes: Records of the step.
        costs: Costs in this run; in the earlier run if it was skipped.
        run: Name of the run that computed the result.
        error: Error of a failed step, in one line.
        traceback: Its traceback.
    """

    state: str = "waiting"
    key: str = ""
    result: StepResult | None = None
    notes: Notes | None = None
    costs: Costs | None = None
    run: str = ""
    error: str = ""
    traceback: str = ""

    @property
    def has_result(self) -> bool:
        """Whether the step is done or skipped."""
        return self.state in ("done", "skipped")


class Job:
    """Steps that run as Ray tasks, as soon as their inputs are computed.

    A step's result is stored under `steps/` of the storage root with a key of its code, its
    parameters and the content of its inputs. A later run of the job takes it from there: an
    unchanged step costs nothing, and a crashed job resumes at the failed step.

    Example:
        job = Job("recommender", config, Storage())
        tables = job.step(etl, config.ratings)
        model = job.step(train_model, tables, epochs=3).options(timeout_s=3600)
        job.step(deploy, model).options(cached=False)
        job.run()

    Attributes:
        name: Name of the job and of its MLflow experiment.
        config: Settings of the job, recorded with each run.
        steps: Steps by name, in the order in which they were added.
        progress: Progress of the steps by name.
        run_id: Name of the run, once it has started.
        verbose: Whether the run prints each step's measured traffic.
    """

    @checked
    def __init__(
        self,
        name: str,
        config: BaseModel,
        storage: Storage | None = None,
        *,
        measure_traffic: bool = False,
    ) -> None:
        """Create a job without steps.

        Args:
            name: Name of the job.
            config: Settings of the job.
            storage: The storage root, see `Storage` for the default.
            measure_traffic: Record each step's bytes through the object store and of tables
                through its process; it patches Ray's serialiser in all of the job's workers.
        """
        check_name(name)
        self._measures_traffic = measure_traffic
        self.name, self.config = name, config
        self.storage = storage or Storage()
        self.steps: dict[str, Step] = {}
        self.progress: dict[str, StepProgress] = {}
        self.run_id, self.verbose = "", False
        self._undo: list[tuple[Step, Callable[[Any], None]]] = []

    def __repr__(self) -> str:
        run = f", run {self.run_id}" if self.run_id else ""
        return f"Job({self.name!r}, {len(self.steps)} steps{run})"

    @checked
    def step(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Step:
        """Add a step with the name of its function.

        Args:
            function: Called as `function(run, *args, **kwargs)` in a task, with a `Run`.
            args: Values, and steps that stand for their results, also in lists and dicts.
            kwargs: Keyword arguments of the same kinds.

        Returns:
            The step, an argument for others; see `Step.options` for resources and retries.
        """
        step = Step(step_name(function), function, args, kwargs)
        check_name(step.name)
        if step.name in self.steps:
            raise RaysysError(
                f"job {self.name!r} has two steps {step.name!r}: give the second function "
                "another name, its `__name__`"
            )
        check_no_hidden_step([function, args, kwargs])
        for source in step.inputs:
            if self.steps.get(source.name) is not source:
                raise RaysysError(
                    f"step {step.name!r} takes a step of another job: {source.name!r}"
                )
        self.steps[step.name] = step
        self.progress[step.name] = StepProgress()
        return step

    @checked
    def on_failure(self, step: Step, undo: Callable[[Any], None]) -> None:
        """Call `undo(result)` if the job fails after a step, to end the step's processes."""
        self._undo.append((step, undo))

    @checked
    def run(self, start: str | None = None, *, verbose: bool = False) -> None:
        """Run the steps that have no result yet; after a failure, running steps still end.

        Args:
            start: Step to run in any case, with its dependents.
            verbose: Print each step's measured traffic.

        Raises:
            RaysysError: `start` does not name a step.
            ResourceError: A step needs more than the cluster has; no step has run.
            RaysysError: Error of a step, if its code raised one.
            StepError: Any other error of a step.
        """
        forced, self.verbose = self._from(start), verbose
        cluster.connect(measure_traffic=self._measures_traffic)
        for step in self.steps.values():
            if demand := step.settings.resources:
                cluster.require(f"step {step.name!r}", cpus=demand.cpus, gpus=demand.gpus)
        moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        self.run_id = f"{self.name}-{moment}-{secrets.token_hex(2)}"
        with _terminable(), self._tracked() as tracked:
            execution = Execution(self, tracked, forced)
            try:
                execution.run()
            finally:
                execution.close()

    def diagram(self, kind: str = "text") -> str:
        """Diagram of the steps, their inputs and progress; `kind` is "text" or "mermaid".

        A step whose result an earlier run has stored is "skipped", as it would be now.
        """
        progress = self.progress
        self.progress = dict(progress)  # a run looks for stored results itself
        try:
            for step in self.steps.values():
                if earlier := self._stored(step):
                    self.progress[step.name] = earlier
            return draw_record({"steps": [self._step_record(name) for name in self.steps]}, kind)
        finally:
            self.progress = progress

    # --- called by Execution ---

    def key_of(self, step: Step) -> str:
        """Digest of a step's code, parameters and inputs; the inputs must have results."""
        results = {source.name: self.progress[source.name].result for source in step.inputs}
        contents = {n: _InputContent(r.content, r.items) for n, r in results.items() if r}
        try:
            arguments = digest(*with_results((step.args, step.kwargs), contents))
            code = digest(step.function)
        except RaysysError as error:
            raise RaysysError(f"step {step.name!r}: {error}") from None
        return digest(self.name, step.name, code, arguments)[:20]

    def folder_of(self, step: Step, key: str) -> str:
        """Storage path of a step's folder."""
        return f"steps/{self.name}/{step.name}/{key}"

    def cached(self, step: Step, key: str) -> StepProgress | None:
        """Progress of a step whose result an earlier run has stored."""
        path = f"{self.folder_of(step, key)}/step.json"
        data = self.storage.read_bytes(path)
        if data is None:
            return None
        try:
            stored = json.loads(data)
            result = StepResult(**stored["result"])
            require_intact(self.storage, result.path)
            return StepProgress(
                "skipped", key, result, Notes(**stored["notes"]), Costs(**stored["costs"]),
                stored["run"],
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError, StorageError) as error:
            damaged = error if isinstance(error, StorageError) else f"{path} is damaged"
            say(f"[{step.name}] its stored result cannot be used, and is computed again: {damaged}")
            return None

    def write(self, status: str) -> None:
        """Write the run's record."""
        self.storage.write_json(f"runs/{self.run_id}/run.json", self.record(status))

    def record(self, status: str) -> dict[str, Any]:
        """The run's record at this moment."""
        notes = self.notes()
        return {
            "id": self.run_id,
            "job": self.name,
            "status": status,
            "config": json.loads(self.config.model_dump_json()),
            "steps": [self._step_record(name) for name in self.steps],
            "metrics": notes.metrics,
            "facts": notes.facts,
            "packages": package_versions(),
            "git_commit": git_commit(),
        }

    def notes(self) -> Notes:
        """Records of all steps."""
        notes = Notes()
        for progress in self.progress.values():
            if progress.notes:
                notes.add(progress.notes)
        return notes

    def _step_record(self, name: str) -> dict[str, Any]:
        progress = self.progress[name]
        costs = asdict(progress.costs) if progress.costs else {}
        inputs = [step.name for step in self.steps[name].inputs]
        return {
            "name": name, "state": progress.state, "inputs": inputs, "key": progress.key,
            "run": progress.run, **costs,
            **{key: text for key in ("error", "traceback") if (text := getattr(progress, key))},
        }  # fmt: skip

    def _stored(self, step: Step) -> StepProgress | None:
        """Progress of a waiting step that would be skipped."""
        inputs_known = all(self.progress[source.name].result for source in step.inputs)
        waits = self.progress[step.name].state == "waiting"
        if not (waits and inputs_known and step.settings.cached):
            return None
        return self.cached(step, self.key_of(step))

    def _from(self, start: str | None) -> set[str]:
        if start is None:
            return set()
        if start not in self.steps:
            names = ", ".join(map(repr, self.steps))
            raise RaysysError(f"job {self.name!r} has no step {start!r}; there are {names}")
        forced = {start}
        for name, step in self.steps.items():  # inputs come before the steps that take them
            if forced & {source.name for source in step.inputs}:
                forced.add(name)
        return forced

    @contextmanager
    def _tracked(self) -> Iterator[TrackedRun]:
        """Open the run in MLflow and its record; close both on success and on errors."""
        settings = self.config.model_dump()
        tracked = open_run(self.storage, self.name, self.run_id, settings=settings)
        folder = Storage(self.storage.uri(f"runs/{self.run_id}"))
        tracked.nest(folder)
        tracked.watch(NodeMeter().read)
        say(f"run {self.run_id}: record under {folder.root}")
        status = "FAILED"
        try:
            yield tracked
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):  # `raysys stop` raises SystemExit
            status = "KILLED"
            raise
        finally:
            if status != "FINISHED":
                self._call_undo()
            self.write(status)
            notes = self.notes()
            for name, values in notes.curves.items():
                tracked.log_curve(name, values)
            tracked.log_tags(notes.tags)
            tracked.end(status, notes.metrics)
            say(f"run {self.run_id} {status.lower()}: {self._summary()}")

    def _call_undo(self) -> None:
        for step, undo in reversed(self._undo):
            progress = self.progress[step.name]
            if progress.state != "done" or progress.result is None:
                continue
            try:
                undo(load(self.storage, progress.result))
            except Exception as error:  # the job's own error is raised
                say(f"[{step.name}] its clean-up failed: {error}")

    def _summary(self) -> str:
        by_state: dict[str, list[str]] = {}
        for name, progress in self.progress.items():
            by_state.setdefault(progress.state, []).append(name)
        costs = [p.costs for p in self.progress.values() if p.costs and p.state == "done"]
        tables = [cost.driver_table_bytes for cost in costs if cost.driver_table_bytes is not None]
        counted = ", ".join(f"{len(names)} {state}" for state, names in by_state.items())
        text = f"{counted}; {sum(cost.seconds for cost in costs):.0f} s of steps"
        if tables and self.verbose:
            text += f"; tables through the driver: {sum(tables)} bytes"
        if by_state.get("failed"):
            text += f"; the same command resumes at [{by_state['failed'][0]}]"
        if any(progress.traceback for progress in self.progress.values()):
            text += f"; `raysys steps {self.run_id}` prints the traceback"
        return text


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM raise SystemExit with the status that shells show for it.

    Ray's own handler, set when the driver connects, ends the process by SIGABRT.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the run is being closed
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class _InputContent:
    """Stands for an input in a key; an item of it counts alone, if its digest is known."""

    content: str
    items: Mapping[str, str] = field(hash=False)

    def __getitem__(self, key: Any) -> str:
        return self.items.get(repr(key), f"{self.content} {key!r}")
