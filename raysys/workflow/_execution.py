"""Execution of a job: starts its steps, skips unchanged ones, retries lost ones."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ray

from raysys import cluster
from raysys.console import say
from raysys.errors import RaysysError, StepError
from raysys.secrets import shown
from raysys.telemetry import metrics
from raysys.workflow import _output_relay as _relay
from raysys.workflow import _scheduling_policy as _policy
from raysys.workflow._lease import Lease
from raysys.workflow._step_task import Costs, StepCall, StepOutcome, start

if TYPE_CHECKING:
    from ray import ObjectRef

    from raysys.tracking import TrackedRun
    from raysys.workflow._job import Job
    from raysys.workflow._step import Step
    from raysys.workflow._step_results import StepResult

_POLL_S = 0.2


@dataclass
class _Attempt:
    """A step that runs, or waits for its next attempt."""

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
        self._attempts: dict[str, _Attempt] = {}
        self._values: dict[str, ObjectRef] = {}
        self._errors: list[BaseException] = []
        self._leases: dict[str, Lease] = {}
        self._awaited: dict[str, str] = {}  # runs that compute results this one waits for

    def run(self) -> None:
        """Run all steps; raise the first error when no step is running any more."""
        self._job.write("RUNNING")
        while True:
            if not self._errors:
                self._begin()
            if not self._attempts and (self._errors or not self._awaited):
                break
            self._wait()
        if self._errors:
            raise self._errors[0]

    def close(self) -> None:
        """Release the leases of unfinished steps."""
        for lease in self._leases.values():
            lease.release()

    def _begin(self) -> None:
        """Skip or start the steps that are ready, until no more become ready."""
        progress, changed = self._job.progress, True
        while changed:
            changed = False
            ready = [
                step
                for step in self._job.steps.values()
                if progress[step.name].state == "waiting"
                and all(progress[source.name].has_result for source in step.inputs)
            ]
            for step in ready:
                changed |= self._skip(step)
            ready = [step for step in ready if progress[step.name].state == "waiting"]
            running = [attempt.step for attempt in self._attempts.values()]
            for step in _policy.steps_to_start(ready, running, cluster.limits()):
                if self._take_lease(step):
                    say(f"[{step.name}] ...")
                    self._start(step, failures=0)

    def _take_lease(self, step: Step) -> bool:
        """Take the step's lease; False if another run computes the same result."""
        path = self._job.folder_of(step, self._job.progress[step.name].key)
        lease = Lease(path, self._job.run_id)
        owner = lease.take()
        if owner is None:
            self._leases[step.name] = lease
            self._awaited.pop(step.name, None)
            return True
        if self._awaited.get(step.name) != owner:
            say(f"[{step.name}] waiting for run {owner}, which computes the same result")
            self._awaited[step.name] = owner
        return False

    def _skip(self, step: Step) -> bool:
        """Reuse the result of an earlier run, if there is one."""
        progress = self._job.progress[step.name]
        if not progress.key:
            progress.key = self._job.key_of(step)
        if not step.settings.cached or step.name in self._forced:
            return False
        earlier = self._job.cached(step, progress.key)
        if earlier is None:
            return False
        self._job.progress[step.name] = earlier
        self._awaited.pop(step.name, None)
        assert earlier.costs is not None
        seconds = f"{earlier.costs.seconds:.1f} s"
        say(f"[{step.name}] unchanged since run {earlier.run}, which took {seconds}")
        self._count(step, "skipped")
        self._job.write("RUNNING")
        return True

    def _start(self, step: Step, failures: int) -> None:
        job, progress = self._job, self._job.progress[step.name]
        inputs: dict[str, StepResult | list[ObjectRef]] = {}
        for source in step.inputs:
            result = job.progress[source.name].result
            assert result is not None
            value = self._values.get(source.name)
            # A value lost with its node is lost in memory only: a retry reads the stored result.
            inputs[source.name] = [value] if value is not None and not failures else result
        channel = f"output:{job.run_id}:{step.name}:{failures}"
        record = {**job.record("RUNNING"), "notes": asdict(job.notes())}
        call = StepCall(
            step=step, inputs=inputs, path=job.folder_of(step, progress.key), channel=channel,
            verbose=job.verbose, record=record, storage=job.storage, tracked=self._tracked,
        )  # fmt: skip
        value, outcome = start(call)
        self._values[step.name] = value
        self._attempts[step.name] = _Attempt(step, outcome, channel, time.monotonic(), failures)
        if progress.state != "running":
            progress.state, progress.run = "running", job.run_id
            self._count(step, "running")
            job.write("RUNNING")

    def _wait(self) -> None:
        """Wait a moment; print the steps' output and handle the attempts that have ended."""
        for attempt in list(self._attempts.values()):
            if attempt.outcome is None and time.monotonic() >= attempt.next_s:
                self._start(attempt.step, attempt.failures)
        running = {a.outcome: a for a in self._attempts.values() if a.outcome is not None}
        ready: list[ObjectRef] = []
        if running:
            ready, _ = ray.wait(list(running), timeout=_POLL_S, fetch_local=True)
        else:
            time.sleep(_POLL_S)
        for attempt in running.values():
            if output := _relay.take(attempt.channel):
                sys.stdout.write(output)
                sys.stdout.flush()
        for ref in ready:
            attempt = running[ref]
            try:
                outcome = ray.get(ref)
            except Exception as error:
                self._failed(attempt, error)
            else:
                self._done(attempt.step, outcome)

    def _done(self, step: Step, outcome: StepOutcome) -> None:
        job, progress, costs = self._job, self._job.progress[step.name], outcome.costs
        del self._attempts[step.name]
        progress.state = "done"
        progress.result, progress.notes, progress.costs = outcome.result, outcome.notes, costs
        stored = {
            "result": asdict(outcome.result), "notes": asdict(outcome.notes),
            "costs": asdict(costs), "run": job.run_id, "key": progress.key,
        }  # fmt: skip
        job.storage.write_json(f"{job.folder_of(step, progress.key)}/step.json", stored)
        self._leases.pop(step.name).release()
        number = list(job.steps).index(step.name) + 1
        measured = {name: cost for name, cost in asdict(costs).items() if cost is not None}
        self._tracked.log({f"step/{step.name}/{name}": measured[name] for name in measured}, number)
        self._count(step, "done", costs)
        text = f"[{step.name}] {costs.seconds:.1f} s"
        if job.verbose and costs.put_bytes is not None:
            text += (
                f"; object store: put {_mebibytes(costs.put_bytes)}, read "
                f"{_mebibytes(costs.read_bytes)}; through the driver: tables "
                f"{costs.driver_table_bytes} bytes, row labels {costs.driver_label_bytes} bytes"
            )
        say(text)
        job.write("RUNNING")

    def _failed(self, attempt: _Attempt, error: Exception) -> None:
        job, step = self._job, attempt.step
        with suppress(Exception):
            ray.get(self._values.pop(step.name))  # else Ray prints the error, too
        failures, duration_s = attempt.failures + 1, time.monotonic() - attempt.started_s
        retry = _policy.retry_of(step, error, failures, duration_s)
        if retry is not None:
            say(f"[{step.name}] retried in {retry.delay_s:g} s: {retry.reason}")
            self._count(step, "retried")
            attempt.outcome, attempt.failures = None, failures
            attempt.next_s = time.monotonic() + retry.delay_s
            return
        del self._attempts[step.name]
        cause = cluster.task_error_cause(error)
        if not isinstance(cause, RaysysError):
            line = _policy.loss_of(error) or cluster.error_line(error)
            cause = StepError(step.name, line)
        line = cause.line if isinstance(cause, StepError) else cluster.error_line(cause)
        progress = job.progress[step.name]
        progress.state, progress.error = "failed", shown(line)
        progress.traceback = "\n".join(getattr(cause, "__notes__", ()))
        self._count(step, "failed")
        say(f"[{step.name}] failed: {progress.error}")
        job.write("RUNNING")
        self._errors.append(cause)

    def _count(self, step: Step, state: str, costs: Costs | None = None) -> None:
        """Count in Ray's metrics that a step reached a state, and record its costs."""
        tags = {"job": self._job.name, "step": step.name}
        metrics.STEPS.inc(1, {**tags, "state": state})
        if state != "retried":
            metrics.STEP_RUNNING.set(float(state == "running"), tags)
        if costs is not None:
            metrics.STEP_SECONDS.set(costs.seconds, tags)
            if costs.driver_table_bytes is not None:
                metrics.STEP_TABLE_BYTES.set(costs.driver_table_bytes, tags)


def _mebibytes(count: Any) -> str:
    return f"{count / 2**20:.1f} MiB"
