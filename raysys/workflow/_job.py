"""A job: its steps, in what order they run, and the record of a run."""

from __future__ import annotations

import json
import secrets
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raysys import cluster
from raysys.console import say
from raysys.errors import RaysysError
from raysys.identity import digest
from raysys.storage import Storage
from raysys.telemetry import NodeMeter
from raysys.tracking import TrackedRun, git_commit, open_run, package_versions
from raysys.workflow._diagram import draw_record
from raysys.workflow._execution import Execution
from raysys.workflow._run_context import Notes
from raysys.workflow._step import Step, check_name, filled, named
from raysys.workflow._step_results import Result, load
from raysys.workflow._step_task import Costs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pydantic import BaseModel


@dataclass
class Progress:
    """How far a step is.

    Attributes:
        state: "waiting", "running", "done", "skipped" (an earlier result was taken), "failed".
        key: Digest of its code, parameters and inputs, once these are there.
        result: What it gave.
        notes: What it recorded.
        costs: Of this run; of the earlier one if it was skipped.
        run: The run that computed the result.
        error: Why it failed.
    """

    state: str = "waiting"
    key: str = ""
    result: Result | None = None
    notes: Notes | None = None
    costs: Costs | None = None
    run: str = ""
    error: str = ""

    @property
    def is_there(self) -> bool:
        """Whether it has a result."""
        return self.state in ("done", "skipped")


class Job:
    """Steps that run as Ray tasks, as soon as their inputs are there.

    A step's result is kept under `steps/` of the storage root with a key of its code, its
    parameters and the content of its inputs. A later run of the job takes it from there, so that
    an unchanged step costs nothing, and a job that crashed goes on with the step that failed.

    Example:
        job = Job("recommender", config, Storage())
        tables = job.step(etl, config.ratings)
        model = job.step(train_model, tables, epochs=3).options(timeout_s=3600)
        job.step(deploy, model).options(cached=False)
        job.run()

    Attributes:
        name: Becomes the MLflow experiment.
        config: The job's settings, recorded as they are.
        storage: The storage root.
        steps: In the order in which they were added, by name.
        progress: Of each step, by name.
        run_id: Of the run, once it has begun.
    """

    def __init__(
        self,
        name: str,
        config: BaseModel,
        storage: Storage | None = None,
        *,
        measure_traffic: bool = False,
    ) -> None:
        """Begin with no steps.

        Args:
            name: The job's name.
            config: Its settings.
            storage: The storage root; the default one if it is left out.
            measure_traffic: Record each step's bytes through the object store and of tables
                through its process; it patches Ray's serialiser in all of the job's workers.
        """
        check_name(name)
        self._measures_traffic = measure_traffic
        self.name, self.config = name, config
        self.storage = storage or Storage()
        self.steps: dict[str, Step] = {}
        self.progress: dict[str, Progress] = {}
        self.run_id = ""
        self._undo: list[tuple[Step, Callable[[Any], None]]] = []

    def step(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Step:
        """Add a step, named as its function.

        Args:
            function: Called as `function(run, *args, **kwargs)` in a task, with a `Run`.
            args: Values, and steps that stand for their results, in lists and dicts too.
            kwargs: The same by name.

        Returns:
            The step, to be given to others; `options` says how it is run.
        """
        step = Step(named(function), function, args, kwargs)
        check_name(step.name)
        if step.name in self.steps:
            raise RaysysError(
                f"job {self.name!r} has two steps {step.name!r}: give the second function "
                "another name"
            )
        for one in step.inputs:
            if self.steps.get(one.name) is not one:
                raise RaysysError(f"step {step.name!r} takes a step of another job: {one.name!r}")
        self.steps[step.name] = step
        self.progress[step.name] = Progress()
        return step

    def on_failure(self, step: Step, undo: Callable[[Any], None]) -> None:
        """Call `undo(result)` if the job fails after a step: to end what the step left running."""
        self._undo.append((step, undo))

    def run(self, start: str | None = None) -> None:
        """Run the steps that have no result yet; a failure ends the job when the others end.

        Args:
            start: This step and all that follow from it run in any case.

        Raises:
            RaysysError: There is no such step.
            ResourceError: A step needs more than the cluster has; nothing has run.
            Exception: What a step raised.
        """
        forced = self._from(start)
        cluster.connect(measure_traffic=self._measures_traffic)
        for step in self.steps.values():
            if needs := step.how.needs:
                cluster.require(f"step {step.name!r}", cpus=needs.cpus, gpus=needs.gpus)
        moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        self.run_id = f"{self.name}-{moment}-{secrets.token_hex(2)}"
        with self._tracked() as tracked:
            execution = Execution(self, tracked, forced)
            try:
                execution.run()
            finally:
                execution.close()

    def diagram(self, kind: str = "text") -> str:
        """The steps, what each takes and how far it is.

        Args:
            kind: "text" or "mermaid".
        """
        return draw_record({"steps": [self._recorded(name) for name in self.steps]}, kind)

    # --- of the execution ---

    def key_of(self, step: Step) -> str:
        """Digest of a step's code, parameters and inputs; the inputs must be there."""
        contents = {one.name: self.progress[one.name].result.content for one in step.inputs}  # type: ignore[union-attr]
        known = {name: _Content(content) for name, content in contents.items()}
        try:
            given = digest(filled(step.args, known), filled(step.kwargs, known))
            code = digest(step.function)
        except RaysysError as error:
            raise RaysysError(f"step {step.name!r}: {error}") from None
        return digest(self.name, step.name, code, given)[:20]

    def folder_of(self, step: Step, key: str) -> str:
        """Storage path of a step's folder."""
        return f"steps/{self.name}/{step.name}/{key}"

    def earlier(self, step: Step, key: str) -> Progress | None:
        """What an earlier run has left of a step."""
        kept = self.storage.read_bytes(f"{self.folder_of(step, key)}/step.json")
        if kept is None:
            return None
        known = json.loads(kept)
        return Progress(
            "skipped", key, Result(**known["result"]), Notes(**known["notes"]),
            Costs(**known["costs"]), known["run"],
        )  # fmt: skip

    def write(self, status: str) -> None:
        """Write the run's record."""
        self.storage.write_json(f"runs/{self.run_id}/run.json", self.record(status))

    def record(self, status: str) -> dict[str, Any]:
        """What is known of the run now."""
        notes = self.notes()
        return {
            "id": self.run_id,
            "job": self.name,
            "status": status,
            "config": json.loads(self.config.model_dump_json()),
            "steps": [self._recorded(name) for name in self.steps],
            "metrics": notes.metrics,
            "facts": notes.facts,
            "packages": package_versions(),
            "git_commit": git_commit(),
        }

    def notes(self) -> Notes:
        """What all steps have recorded."""
        notes = Notes()
        for one in self.progress.values():
            if one.notes:
                notes.add(one.notes)
        return notes

    def _recorded(self, name: str) -> dict[str, Any]:
        one = self.progress[name]
        costs = asdict(one.costs) if one.costs else {}
        inputs = [step.name for step in self.steps[name].inputs]
        return {
            "name": name, "state": one.state, "inputs": inputs, "key": one.key, "run": one.run,
            **costs, **({"error": one.error} if one.error else {}),
        }  # fmt: skip

    def _from(self, start: str | None) -> set[str]:
        if start is None:
            return set()
        if start not in self.steps:
            raise RaysysError(f"job {self.name!r} has no step {start!r}; {_listed(self.steps)}")
        forced = {start}
        for name, step in self.steps.items():  # inputs come before those that take them
            if forced & {one.name for one in step.inputs}:
                forced.add(name)
        return forced

    @contextmanager
    def _tracked(self) -> Iterator[TrackedRun]:
        """Open the run in MLflow and its record; close both whatever comes."""
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
        except (KeyboardInterrupt, SystemExit):  # the latter is Ray's answer to `raysys stop`
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
            except Exception as error:  # the job's own error is what is to be told
                say(f"[{step.name}] what it left running could not be ended: {error}")

    def _summary(self) -> str:
        by_state: dict[str, list[str]] = {}
        for name, one in self.progress.items():
            by_state.setdefault(one.state, []).append(name)
        costs = [one.costs for one in self.progress.values() if one.costs and one.state == "done"]
        tables = [one.driver_table_bytes for one in costs if one.driver_table_bytes is not None]
        counted = ", ".join(f"{len(names)} {state}" for state, names in by_state.items())
        text = f"{counted}; {sum(one.seconds for one in costs):.0f} s of steps"
        if tables:
            text += f"; tables through the driver: {sum(tables)} bytes"
        if by_state.get("failed"):
            text += f"; the same command goes on at [{by_state['failed'][0]}]"
        return text


@dataclass(frozen=True)
class _Content:
    """What stands for an input in a key; an item of it counts as the whole."""

    content: str

    def __getitem__(self, key: Any) -> tuple[str, Any]:
        return self.content, key


def _listed(names: Mapping[str, Any]) -> str:
    return "there are " + ", ".join(repr(name) for name in names)
