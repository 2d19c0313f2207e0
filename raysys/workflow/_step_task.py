"""A step in its Ray task: its inputs, its costs, its result."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

from raysys import cluster
from raysys.console import say
from raysys.storage import Storage
from raysys.telemetry import DriverMeter, counts_reads, logs, store_bytes
from raysys.workflow import _output_relay as _relay
from raysys.workflow._run_context import Notes, Run
from raysys.workflow._step import Step, filled
from raysys.workflow._step_results import Result, keep, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ray import ObjectRef

    from raysys.tracking import TrackedRun


@dataclass(frozen=True)
class Costs:
    """Time and traffic of a step; the traffic is None unless the job measures it.

    Attributes:
        seconds: Time from its start until its result is stored.
        put_bytes: Bytes created in the cluster's object stores meanwhile.
        read_bytes: Bytes read from them.
        driver_table_bytes: Bytes of tables that passed between the step's own process and Ray,
            where references should.
        driver_label_bytes: Bytes of row labels that did.
    """

    seconds: float
    put_bytes: int | None = None
    read_bytes: int | None = None
    driver_table_bytes: int | None = None
    driver_label_bytes: int | None = None


@dataclass(frozen=True)
class Input:
    """The result of a step, for another.

    Attributes:
        result: As it is kept.
        value: As it is held in memory, while it is; a list, so that Ray does not fetch it.
    """

    result: Result
    value: list[ObjectRef] = field(default_factory=list)


@dataclass(frozen=True)
class Call:
    """All that a step's task is told.

    Attributes:
        step: With its arguments, in which steps stand for their results.
        inputs: Those results by the steps' names.
        path: The step's folder, as a storage path.
        channel: Where its lines of progress go.
        record: What is known of the run.
        tracked: The run in MLflow.
    """

    step: Step
    inputs: Mapping[str, Input]
    path: str
    channel: str
    record: Mapping[str, Any]
    storage: Storage
    tracked: TrackedRun


@dataclass(frozen=True)
class Outcome:
    """What the driver learns of a step that ended."""

    result: Result
    notes: Notes
    costs: Costs


def start(call: Call) -> tuple[ObjectRef, ObjectRef]:
    """Start a step's task; references to its value and to its `Outcome`."""
    how = call.step.how
    options: dict[str, Any] = {
        "name": f"{call.record['job']}:{call.step.name}",
        "num_cpus": how.cpus,
        "num_gpus": how.gpus,
        "num_returns": 2,
        "max_retries": 0,  # the job decides, see `_policy`
    }
    if not how.cpus and not how.gpus:
        # A node on which only such a task runs seems idle to the autoscaler.
        here = ray.get_runtime_context().get_node_id()
        options["scheduling_strategy"] = On(here, soft=False)
    value, outcome = ray.remote(_run).options(**options).remote(call)
    return value, outcome


def _run(call: Call) -> tuple[Any, Outcome]:
    step, how = call.step, call.step.how
    work = Storage(call.storage.uri(f"{call.path}/work"))
    run = Run(record=call.record, storage=call.storage, work=work, tracked=call.tracked)
    with ExitStack() as around:
        around.enter_context(_relay.relayed(call.channel))
        if how.timeout_s is not None:
            around.enter_context(_ended_after(how.timeout_s))
        if how.needs is not None:
            around.enter_context(
                cluster.share(how.needs, f"the step {step.name!r}", ".options(needs={})")
            )
        cluster.connect()
        around.enter_context(logs.log_context(run=run.id, step=step.name))
        call.tracked.nest(work)
        traffic = around.enter_context(_measured_traffic(step.name))
        started = time.perf_counter()
        values = {name: _value(call.storage, one) for name, one in call.inputs.items()}
        made = step.function(run, *filled(step.args, values), **filled(step.kwargs, values))
        result = keep(call.storage, f"{call.path}/result", made)
        costs = Costs(time.perf_counter() - started, **traffic())
        return made, Outcome(result, run.notes, costs)


@contextmanager
def _measured_traffic(step: str) -> Iterator[Callable[[], dict[str, int]]]:
    """A function that gives the traffic so far, as `Costs` has it; {} where it is not measured."""
    if not counts_reads():
        yield dict
        return
    meter, before = DriverMeter(), store_bytes()

    def traffic() -> dict[str, int]:
        after = store_bytes()
        for content, size in meter.take_biggest():
            if content.startswith("table"):
                say(f"[{step}]   {size} bytes through the step's process: {content}")
        return {
            "put_bytes": max(0, after.put - before.put),  # less, if a node was lost
            "read_bytes": max(0, (after.read or 0) - (before.read or 0)),
            "driver_table_bytes": meter.table_bytes,
            "driver_label_bytes": meter.label_bytes,
        }

    meter.install()
    try:
        yield traffic
    finally:
        meter.uninstall()


def _value(storage: Storage, given: Input) -> Any:
    return ray.get(given.value[0]) if given.value else load(storage, given.result)


@contextmanager
def _ended_after(timeout_s: float) -> Iterator[None]:
    """End this process after a time; what it started ends with it."""
    # A step may wait in Ray's or a library's C++, where no exception reaches it.
    timer = threading.Timer(timeout_s, os._exit, (1,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
