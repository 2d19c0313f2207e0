"""JSON logs with the ids of job, run, step and request, which the Ray dashboard shows.

A worker's lines are in its stderr file in Ray's log folder, which the dashboard shows with the task
or actor; a driver's in `raysys-driver-<job>-<pid>.log` beside it. Ray's own LoggingConfig would
write a driver's log to its terminal, with the lines of all other libraries, and without our ids.

Nothing is configured on import: `cluster.connect` and the hook of its workers call `set_up`.

Example:
    log = logging.getLogger("raysys.index")
    with log_context(run="recommender-1", step="index"):
        log.warning("replica %d is unreachable", 3, extra={"shard": 1})
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raysys.imports import lazy_import
from raysys.ray_internals import process
from raysys.telemetry.object_store import count_reads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ray = lazy_import("ray")

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
_ids: ContextVar[Mapping[str, str] | None] = ContextVar("raysys_log_ids", default=None)
_sources: dict[str, Callable[[], Any]] = {}


@contextmanager
def log_context(**ids: str) -> Iterator[None]:
    """Add ids, such as `run` and `step`, to the lines of this thread or coroutine."""
    token = _ids.set({**(_ids.get() or {}), **ids})
    try:
        yield
    finally:
        _ids.reset(token)


def add_source(name: str, source: Callable[[], Any]) -> None:
    """Add a function's value at the time to each line of this process, unless it is empty."""
    _sources[name] = source


class JsonFormatter(logging.Formatter):
    """A JSON line: time (UTC), level, logger, message, ids and `extra` values."""

    def format(self, record: logging.LogRecord) -> str:
        """The JSON line of a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **ray_ids(),
            **(_ids.get() or {}),
            **{name: value for name, source in _sources.items() if (value := source())},
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def ray_ids() -> dict[str, str]:
    """Ids of this process in Ray: job, submission, node, and the name of its task or actor."""
    if "ray" not in sys.modules or not ray.is_initialized():
        return {}
    context = ray.get_runtime_context()
    job, node = context.get_job_id(), context.get_node_id()
    ids = {"job": job, "submission": _submission(job), "node": node}
    if process.is_worker():
        ids |= {
            "worker": context.get_worker_id(),
            "actor": context.get_actor_name(),
            "task": context.get_task_name(),
        }
    return {key: value for key, value in ids.items() if value}


def set_up(*, measure_traffic: bool = False) -> None:
    """Write the lines of loggers below `raysys`, from INFO up; a no-op when already started.

    A driver's warnings also go to its terminal, as without this. Drivers call it, and each worker
    by its hook: a worker that cannot import raysys then fails to start.

    Args:
        measure_traffic: Count what this process reads from the object store.
    """
    if measure_traffic:
        count_reads()
    logger = logging.getLogger("raysys")
    file = None
    if not process.is_worker():
        name = f"raysys-driver-{ray.get_runtime_context().get_job_id()}-{os.getpid()}.log"
        file = process.session_folder() / "logs" / name
    current = [h for h in logger.handlers if isinstance(h.formatter, JsonFormatter)]
    if current and (file is None or getattr(current[0], "baseFilename", "") == str(file)):
        return
    for stale in current:  # of a cluster that this process has left
        logger.removeHandler(stale)
        stale.close()
    handler: logging.Handler = logging.StreamHandler()
    if file is not None:
        handler = logging.FileHandler(file, delay=True)
        if not any(isinstance(h, _Terminal) for h in logger.handlers):
            logger.addHandler(_Terminal(logging.WARNING))
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def set_up_measuring() -> None:
    """`set_up` of a worker whose traffic is measured."""
    set_up(measure_traffic=True)


def worker_hook(*, measure_traffic: bool) -> str:
    """The ``worker_process_setup_hook`` of a runtime_env."""
    function = set_up_measuring if measure_traffic else set_up
    return f"{__name__}.{function.__name__}"


class _Terminal(logging.Handler):
    """Warnings as text on the terminal, as logging does for a logger without handlers."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers and logging.lastResort:
            logging.lastResort.handle(record)


@functools.cache
def _submission(job: str) -> str:
    """The submission id of a job; empty of one that was not submitted."""
    return process.job_metadata().get("job_submission_id", "") if job else ""
