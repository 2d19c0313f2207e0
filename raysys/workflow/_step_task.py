"""The Ray task of a step: its inputs, its costs and its result."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cloudpickle
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

from raysys import cluster
from raysys.console import say
from raysys.errors import RaysysError, StepError
from raysys.ray_internals import process
from raysys.secrets import shown
from raysys.storage import Storage
from raysys.telemetry import DriverMeter, counts_reads, logs, store_bytes
from raysys.workflow import _output_relay as _relay
from raysys.workflow import _scheduling_policy as _policy
from raysys.workflow._run_context import Notes, Run
from raysys.workflow._step import Step, with_results
from raysys.workflow._step_results import StepResult, load, save

if TYPE_CHECKING:
    from ray import ObjectRef

    from raysys.tracking import TrackedRun

_log = logging.getLogger("raysys.workflow")


@dataclass(frozen=True)
class Costs:
    """Time and traffic of a step; the traffic is None unless the job measures it.

    Attributes:
        seconds: Time from its start until its result is stored.
        put_bytes: Bytes created in the cluster's object stores meanwhile.
        read_bytes: Bytes read from them.
        driver_table_bytes: Bytes of tables transferred between the step's own process and Ray,
            instead of references.
        driver_label_bytes: Bytes of row labels transferred likewise.
    """

    seconds: float
    put_bytes: int | None = None
    read_bytes: int | None = None
    driver_table_bytes: int | None = None
    driver_label_bytes: int | None = None


@dataclass(frozen=True)
class StepCall:
    """Arguments of a step's task.

    Attributes:
        inputs: Results by step name, for which the steps in the step's arguments stand: stored, or
            in memory, then in a list, so that Ray does not fetch them.
        path: Storage path of the step's folder.
        channel: Channel of its output.
        verbose: Whether its output has the tables that passed through its process.
        record: Record of the run so far.
    """

    step: Step
    inputs: Mapping[str, StepResult | list[ObjectRef]]
    path: str
    channel: str
    verbose: bool
    record: Mapping[str, Any]
    storage: Storage
    tracked: TrackedRun


@dataclass(frozen=True)
class StepOutcome:
    """Result, notes and costs of a step that is done."""

    result: StepResult
    notes: Notes
    costs: Costs


def start(call: StepCall) -> tuple[ObjectRef, ObjectRef]:
    """Start a step's task; references to its value and to its `StepOutcome`."""
    settings = call.step.settings
    options: dict[str, Any] = {
        "name": f"{call.record['job']}:{call.step.name}",
        "num_cpus": settings.num_cpus,
        "num_gpus": settings.num_gpus,
        "num_returns": 2,
        "max_retries": 0,  # the job decides, see `_scheduling_policy`
    }
    if not settings.num_cpus and not settings.num_gpus:
        # A node on which only such a task runs seems idle to the autoscaler.
        node = ray.get_runtime_context().get_node_id()
        options["scheduling_strategy"] = On(node, soft=False)
    value, outcome = ray.remote(_run).options(**options).remote(call)
    return value, outcome


def _run(call: StepCall) -> tuple[Any, StepOutcome]:
    with logs.log_context(run=str(call.record["id"]), step=call.step.name):
        try:
            return _computed(call)
        except BaseException as error:  # a step may call sys.exit
            if isinstance(error, KeyboardInterrupt) or process.is_ray_exit(error):
                raise
            raise _failure(call.step.name, error) from None


def _failure(step: str, error: BaseException) -> RaysysError:
    """The error that the driver raises: one of raysys itself, of others the text."""
    text = shown(cluster.error_traceback(error))
    line = shown(cluster.error_line(error))
    _log.error("step %r failed: %s", step, line, extra={"error": text})
    cause = cluster.task_error_cause(error)
    if isinstance(cause, RaysysError):
        with contextlib.suppress(Exception):
            failure = cloudpickle.loads(cloudpickle.dumps(cause))
            failure.add_note(text)
            return failure
    failure = StepError(step, line, _policy.loss_of(error))
    failure.add_note(text)
    return failure


def _computed(call: StepCall) -> tuple[Any, StepOutcome]:
    step, settings = call.step, call.step.settings
    work = Storage(call.storage.uri(f"{call.path}/work"))
    run = Run(record=call.record, storage=call.storage, work=work, tracked=call.tracked)
    with ExitStack() as stack:
        stack.enter_context(_relay.relayed(call.channel))
        if settings.timeout_s is not None:
            stack.callback(_end_process_after(settings.timeout_s).cancel)
        if demand := settings.resources:
            purpose = f"the step {step.name!r}"
            stack.enter_context(cluster.share(demand, purpose, ".options(resources={})"))
        cluster.connect()
        call.tracked.nest(work)
        traffic = _measure_traffic(call, stack)
        started = time.perf_counter()
        inputs = {
            name: ray.get(source[0]) if isinstance(source, list) else load(call.storage, source)
            for name, source in call.inputs.items()
        }
        args, kwargs = with_results((step.args, step.kwargs), inputs)
        value = step.function(run, *args, **kwargs)
        result = save(call.storage, f"{call.path}/result", value)
        costs = Costs(time.perf_counter() - started, **traffic())
        return value, StepOutcome(result, run.notes, costs)


def _measure_traffic(call: StepCall, stack: ExitStack) -> Callable[[], dict[str, int]]:
    """Measure, if the job does, until the stack is closed; the traffic so far, for `Costs`."""
    if not counts_reads():
        return dict
    meter, before = DriverMeter(), store_bytes()

    def traffic() -> dict[str, int]:
        after = store_bytes()
        for content, size in meter.take_biggest():
            if call.verbose and content.startswith("table"):
                say(f"[{call.step.name}]   {size} bytes through the step's process: {content}")
        return {
            "put_bytes": max(0, after.put - before.put),  # less, if a node was lost
            "read_bytes": max(0, (after.read or 0) - (before.read or 0)),
            "driver_table_bytes": meter.table_bytes,
            "driver_label_bytes": meter.label_bytes,
        }

    meter.install()
    stack.callback(meter.uninstall)
    return traffic


def _end_process_after(timeout_s: float) -> threading.Timer:
    """A timer that has started and ends this process, with everything it started."""
    # A step may block in C++ of Ray or of a library, where it receives no exceptions.
    timer = threading.Timer(timeout_s, os._exit, (1,))
    timer.daemon = True
    timer.start()
    return timer
