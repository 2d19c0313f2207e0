"""The actor that starts scheduled jobs, through Ray's job submission."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from raysys import cluster
from raysys.errors import RaysysError
from raysys.identity import digest
from raysys.ray_internals import key_value
from raysys.workflow import _schedule

if TYPE_CHECKING:
    from raysys.storage import Storage
    from raysys.workflow._schedule import Schedule

_NAME = "scheduler"
_STARTED = b"scheduler started"
_TICK_S = 5.0
_log = logging.getLogger("raysys.workflow")


class Scheduler:
    """Starts due jobs, each once.

    All its state is under the storage root. A job's id contains its scheduled time, and a cluster
    rejects a second job with the same id: an actor that dies between starting a job and recording
    it does not start it again. A run that is due while the previous one is running is skipped.
    """

    def __init__(
        self, storage: Storage, cluster_start_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        """Create a scheduler for this process's cluster; `clock` returns Unix time in seconds."""
        self._storage, self._cluster_start_s, self._clock = storage, cluster_start_s, clock

    def tick(self) -> list[str]:
        """Start the due jobs; returns their ids."""
        started = []
        for schedule in _schedule.list_schedules(self._storage):
            try:
                job = self._start(schedule)
            except Exception as error:  # a broken schedule must not block the others
                _log.warning("schedule %s: %s", schedule.name, error)
                continue
            if job:
                started.append(job)
        return started

    def _start(self, schedule: Schedule) -> str | None:
        last = _schedule.last_run(self._storage, schedule.name)
        before_s: Any = last.get("for_s")
        for_s = schedule.due(before_s, self._clock(), self._cluster_start_s)
        if for_s is None:
            return None
        jobs = cluster.Jobs(_dashboard_url())
        submitted = {job.id: job for job in jobs.all()}
        running = submitted.get(str(last.get("job")))
        if running and not running.is_over:
            _log.warning("schedule %s: %s is still running, so the next run is skipped",
                         schedule.name, running.id)  # fmt: skip
            _schedule.record_run(self._storage, schedule.name, for_s, running.id)
            return None
        seconds = "%S" if schedule.cron == _schedule.REBOOT else ""
        job = f"{schedule.name}-{datetime.fromtimestamp(for_s, UTC):%Y%m%dT%H%M{seconds}Z}"
        if job not in submitted:
            with tempfile.TemporaryDirectory(prefix="raysys-") as folder:
                _schedule.unpack_code(self._storage, schedule.name, Path(folder))
                runtime_env = cluster.runtime_env(Path(folder), schedule.env)
                jobs.submit(schedule.command, runtime_env, storage=self._storage, job=job)
        _schedule.record_run(self._storage, schedule.name, for_s, job)
        return job


class _Actor:
    """Calls `tick` in a thread that starts again with the actor."""

    def __init__(self, storage: Storage) -> None:
        # Of the cluster's first scheduler; the store ends with the cluster.
        key_value.put(_STARTED, str(time.time()).encode(), overwrite=False)
        self._scheduler = Scheduler(storage, float(key_value.get(_STARTED) or 0))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self._scheduler.tick()
            except Exception:  # storage may be unavailable for a while
                _log.exception("the scheduler continues")
            time.sleep(_TICK_S)

    def ping(self) -> bool:
        return True


def start(storage: Storage) -> Any:
    """Start the cluster's scheduler unless it runs; it outlives this process and its own death.

    Raises:
        RaysysError: The cluster has no dashboard.
    """
    _dashboard_url()
    actor = ray.remote(_Actor).options(
        name=f"{_NAME}:{digest(storage.root)[:8]}",
        namespace=cluster.NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        resources={"node:__internal_head__": 0.001},  # on other nodes it would block scale-down
    )
    scheduler = actor.remote(storage)
    ray.get(scheduler.ping.remote())
    return scheduler


def _dashboard_url() -> str:
    """The dashboard's current address; it changes when the head restarts."""
    address = key_value.dashboard_address()
    if address is None:
        raise RaysysError("this cluster has no dashboard to submit jobs to: start it with one")
    return f"http://{address}"
