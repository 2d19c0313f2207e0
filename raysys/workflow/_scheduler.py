"""The small actor that starts jobs by the clock, through Ray's job submission."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
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
    from collections.abc import Callable

    from raysys.storage import Storage
    from raysys.workflow._schedule import Schedule

_NAME = "scheduler"
_TICK_S = 5.0
_log = logging.getLogger("raysys.workflow")


class Scheduler:
    """Starts what is due, once for each moment.

    All it knows stands under the storage root. A job's id holds the moment that it is for, and a
    cluster refuses a second job of an id, so that an actor which dies between starting a job and
    noting it does not start it again. A run that is due while the one before still runs is left
    out.
    """

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.time) -> None:
        """Hold what is needed; `tick` acts, on the cluster that this process is connected to.

        Args:
            storage: Where the schedules are.
            clock: Unix time in seconds.
        """
        self._storage, self._clock = storage, clock

    def tick(self) -> list[str]:
        """Start what is due; the ids of the jobs."""
        started = []
        for schedule in _schedule.every(self._storage):
            try:
                job = self._start(schedule)
            except Exception as error:  # one schedule must not keep the others from running
                _log.warning("schedule %s: %s", schedule.name, error)
                continue
            if job:
                started.append(job)
        return started

    def _start(self, schedule: Schedule) -> str | None:
        before = _schedule.last(self._storage, schedule.name)
        for_s = schedule.due(before.get("for_s"), self._clock())  # type: ignore[arg-type]
        if for_s is None:
            return None
        jobs = cluster.Jobs(_dashboard_url())
        known = {job.id: job for job in jobs.all()}
        running = known.get(str(before.get("job")))
        if running and not running.is_over:
            _log.warning("schedule %s: %s still runs, so the next run is left out",
                         schedule.name, running.id)  # fmt: skip
            _schedule.note(self._storage, schedule.name, for_s, running.id)
            return None
        job = f"{schedule.name}-{datetime.fromtimestamp(for_s, UTC):%Y%m%dT%H%MZ}"
        if job not in known:
            with tempfile.TemporaryDirectory(prefix="raysys-") as folder:
                _schedule.code(self._storage, schedule.name, Path(folder))
                jobs.submit(
                    schedule.command,
                    working_dir=Path(folder),
                    storage=self._storage,
                    job=job,
                    env=schedule.env,
                )
        _schedule.note(self._storage, schedule.name, for_s, job)
        return job


class _Actor:
    """A thread that ticks; dies with the actor, starts with it again."""

    def __init__(self, storage: Storage) -> None:
        self._scheduler = Scheduler(storage)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self._scheduler.tick()
            except Exception:  # storage that is away for a while
                _log.exception("the scheduler goes on")
            time.sleep(_TICK_S)

    def ping(self) -> bool:
        return True


def start(storage: Storage) -> Any:
    """The cluster's scheduler, started if none runs; it outlives this process and its own death.

    Raises:
        RaysysError: The cluster has no dashboard, which takes jobs.
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
        resources={"node:__internal_head__": 0.001},  # elsewhere it would keep a node
    )
    made = actor.remote(storage)
    ray.get(made.ping.remote())
    return made


def _dashboard_url() -> str:
    """The address of the cluster's dashboard now; another one after its head was restarted.

    Raises:
        RaysysError: It has none.
    """
    address = key_value.dashboard_address()
    if address is None:
        raise RaysysError("this cluster has no dashboard, which takes jobs: start one with it")
    return f"http://{address}"
