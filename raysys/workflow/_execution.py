"""Running a job's steps: what starts when, what is skipped, what is tried again."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ray

from raysys import cluster
from raysys.console import say
from raysys.errors import RaysysError
from raysys.secrets import shown
from raysys.workflow import _metrics
from raysys.workflow import _output_relay as _relay
from raysys.workflow import _scheduling_policy as _policy
from raysys.workflow._lease import Lease
from raysys.workflow._step_task import Call, Input, Outcome, start

if TYPE_CHECKING:
    from ray import ObjectRef

    from raysys.tracking import TrackedRun
    from raysys.workflow._job import Job
    from raysys.workflow._step import Step

_POLL_S = 0.2


@dataclass
class _Try:
    """A step that runs, or waits for its next try."""

    step: Step
    outcome: ObjectRef | None
    channel: str
    started_s: float
    failures: int = 0
    next_s: float = 0.0


class Execution:
    """One run of a job's steps."""

    def __init__(self, job: Job, tracked: TrackedRun, forced: set[str]) -> None:
        self._job, self._tracked, self._forced = job, tracked, forced
        self._tries: dict[str, _Try] = {}
        self._values: dict[str, ObjectRef] = {}
        self._errors: list[BaseException] = []
        self._leases: dict[str, Lease] = {}
        self._others: dict[str, str] = {}  # runs that compute what this one waits for

    def run(self) -> None:
        """Run all; raise the first error when no step runs any more."""
        self._job.write("RUNNING")
        while True:
            if not self._errors:
                self._begin()
            if not self._tries and (self._errors or not self._others):
                break
            self._wait()
        if self._errors:
            raise self._errors[0]

    def close(self) -> None:
        """Let other runs compute what this one has begun."""
        for lease in self._leases.values():
            lease.release()

    def _begin(self) -> None:
        """Skip or start what is ready, until nothing more becomes ready."""
        progress, changed = self._job.progress, True
        while changed:
            changed = False
            ready = [
                step
                for step in self._job.steps.values()
                if progress[step.name].state == "waiting"
                and all(progress[one.name].is_there for one in step.inputs)
            ]
            for step in ready:
                changed |= self._skip(step)
            ready = [step for step in ready if progress[step.name].state == "waiting"]
            running = [one.step for one in self._tries.values()]
            for step in _policy.to_start(ready, running, cluster.limits()):
                if self._may_compute(step):
                    say(f"[{step.name}] ...")
                    self._start(step, failures=0)

    def _may_compute(self, step: Step) -> bool:
        """Whether no other run is at it; that run's result is then taken when it is there."""
        path = self._job.folder_of(step, self._job.progress[step.name].key)
        lease = Lease(path, self._job.run_id)
        other = lease.take()
        if other is None:
            self._leases[step.name] = lease
            self._others.pop(step.name, None)
            return True
        if self._others.get(step.name) != other:
            say(f"[{step.name}] waits for run {other}, which computes the same")
            self._others[step.name] = other
        return False

    def _skip(self, step: Step) -> bool:
        """Take an earlier result, if there is one."""
        progress = self._job.progress[step.name]
        if not progress.key:
            progress.key = self._job.key_of(step)
        if not step.how.cached or step.name in self._forced:
            return False
        found = self._job.earlier(step, progress.key)
        if found is None:
            return False
        self._job.progress[step.name] = found
        self._others.pop(step.name, None)
        assert found.costs is not None
        say(
            f"[{step.name}] unchanged since run {found.run}, which took {found.costs.seconds:.1f} s"
        )
        _metrics.record(self._job.name, step.name, "skipped")
        self._job.write("RUNNING")
        return True

    def _start(self, step: Step, failures: int) -> None:
        job, progress = self._job, self._job.progress[step.name]
        inputs = {}
        for one in step.inputs:
            result = job.progress[one.name].result
            assert result is not None
            held = self._values.get(one.name)
            # What was lost with a node is lost in memory only: the next try reads what is kept.
            inputs[one.name] = Input(result, [held] if held is not None and not failures else [])
        channel = f"said:{job.run_id}:{step.name}:{failures}"
        record = {**job.record("RUNNING"), "notes": asdict(job.notes())}
        call = Call(
            step=step,
            inputs=inputs,
            path=job.folder_of(step, progress.key),
            channel=channel,
            record=record,
            storage=job.storage,
            tracked=self._tracked,
        )
        value, outcome = start(call)
        self._values[step.name] = value
        self._tries[step.name] = _Try(step, outcome, channel, time.monotonic(), failures)
        if progress.state != "running":
            progress.state, progress.run = "running", job.run_id
            _metrics.record(job.name, step.name, "running")
            job.write("RUNNING")

    def _wait(self) -> None:
        """Wait a moment; hand on what was said and deal with what has ended."""
        for one in list(self._tries.values()):
            if one.outcome is None and time.monotonic() >= one.next_s:
                self._start(one.step, one.failures)
        waiting = {one.outcome: one for one in self._tries.values() if one.outcome is not None}
        ready: list[ObjectRef] = []
        if waiting:
            ready, _ = ray.wait(list(waiting), timeout=_POLL_S, fetch_local=True)
        else:
            time.sleep(_POLL_S)
        for one in waiting.values():
            if said := _relay.take(one.channel):
                sys.stdout.write(said)
                sys.stdout.flush()
        for ref in ready:
            one = waiting[ref]
            try:
                outcome = ray.get(ref)
            except Exception as error:
                self._failed(one, error)
            else:
                self._done(one.step, outcome)

    def _done(self, step: Step, outcome: Outcome) -> None:
        job, progress, costs = self._job, self._job.progress[step.name], outcome.costs
        del self._tries[step.name]
        progress.state = "done"
        progress.result, progress.notes, progress.costs = outcome.result, outcome.notes, costs
        kept = {
            "result": asdict(outcome.result), "notes": asdict(outcome.notes),
            "costs": asdict(costs), "run": job.run_id, "key": progress.key,
        }  # fmt: skip
        job.storage.write_json(f"{job.folder_of(step, progress.key)}/step.json", kept)
        self._leases.pop(step.name).release()
        number = list(job.steps).index(step.name) + 1
        measured = {name: cost for name, cost in asdict(costs).items() if cost is not None}
        self._tracked.log({f"step/{step.name}/{name}": measured[name] for name in measured}, number)
        _metrics.record(job.name, step.name, "done", costs.seconds, costs.driver_table_bytes)
        text = f"[{step.name}] {costs.seconds:.1f} s"
        if costs.put_bytes is not None:
            text += (
                f"; object store: put {_mebibytes(costs.put_bytes)}, read "
                f"{_mebibytes(costs.read_bytes)}; through the driver: tables "
                f"{costs.driver_table_bytes} bytes, row labels {costs.driver_label_bytes} bytes"
            )
        say(text)
        job.write("RUNNING")

    def _failed(self, one: _Try, error: Exception) -> None:
        job, step = self._job, one.step
        with suppress(Exception):
            ray.get(self._values.pop(step.name))  # else Ray tells the error on its own, too
        again = _policy.after_failure(
            step, error, one.failures + 1, time.monotonic() - one.started_s
        )
        if again is not None:
            say(f"[{step.name}] tried again in {again.delay_s:g} s: {again.why}")
            _metrics.record(job.name, step.name, "retried")
            one.outcome, one.failures = None, one.failures + 1
            one.next_s = time.monotonic() + again.delay_s
            return
        del self._tries[step.name]
        cause = _own(error)
        said = shown(f"{type(cause).__name__}: {cause}")
        job.progress[step.name].state = "failed"
        job.progress[step.name].error = said
        _metrics.record(job.name, step.name, "failed")
        say(f"[{step.name}] failed: {said.splitlines()[0][:300]}")
        job.write("RUNNING")
        self._errors.append(cause)


def _own(error: Exception) -> BaseException:
    """What the step itself raised; an error of ours without the task's traceback."""
    cause: BaseException = error
    while isinstance(cause, ray.exceptions.RayTaskError) and cause.cause is not None:
        cause = cause.cause
    return cause if isinstance(cause, RaysysError) else error


def _mebibytes(count: Any) -> str:
    """A byte count for people."""
    return f"{count / 2**20:.1f} MiB"
