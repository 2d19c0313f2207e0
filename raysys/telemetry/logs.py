"""Logs as JSON lines with the ids of job, run, step and request, where the dashboard shows them.

`say` lines are for people; these are for machines and for the morning after. A worker's stand in
its error file in Ray's log folder, which the dashboard shows with the task or actor; a driver's in
`raysys-driver-<job>-<pid>.log` beside them. Ray's own LoggingConfig would write a driver's to its
terminal, with all that other libraries say, and knows no ids of ours.

Nothing is configured on import: `cluster.connect` and the hook of its workers call `start`.

Example:
    log = logging.getLogger("raysys.index")
    with log_context(run="recommender-1", step="index"):
        log.warning("replica %d is left out", 3, extra={"shard": 1})
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys.imports import lazy_import
from raysys.ray_internals import process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ray = lazy_import("ray")

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
_ids: ContextVar[Mapping[str, str] | None] = ContextVar("raysys_log_ids", default=None)
_sources: dict[str, Callable[[], Any]] = {}


@contextmanager
def log_context(**ids: str) -> Iterator[None]:
    """Add ids, such as `run` and `step`, to what this thread or coroutine logs inside."""
    token = _ids.set({**(_ids.get() or {}), **ids})
    try:
        yield
    finally:
        _ids.reset(token)


def add_source(name: str, source: Callable[[], Any]) -> None:
    """Have each line of this process carry what a function gives, unless that is empty.

    Args:
        name: Of the id in the line.
        source: Called for each line that is written.
    """
    _sources[name] = source


class JsonFormatter(logging.Formatter):
    """One line of JSON: time (UTC), level, logger, message, ids, and what `extra` gave."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **ray_ids(),
            **(_ids.get() or {}),
            **{name: found for name, source in _sources.items() if (found := source())},
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def ray_ids() -> dict[str, str]:
    """Where this process stands in Ray: job, submission, node, and task or actor by name."""
    if "ray" not in sys.modules or not ray.is_initialized():
        return {}
    context = ray.get_runtime_context()
    found = {
        "job": context.get_job_id(),
        "submission": _submission(context.get_job_id()),
        "node": context.get_node_id(),
    }
    if process.is_worker():
        found |= {
            "worker": context.get_worker_id(),
            "actor": context.get_actor_name(),
            "task": context.get_task_name(),
        }
    return {key: value for key, value in found.items() if value}


def start() -> None:
    """Write what loggers below `raysys` say, from INFO up; a no-op where that is done already.

    A driver's warnings are also said on its terminal, as without this.
    """
    logger = logging.getLogger("raysys")
    file = None if process.is_worker() else _driver_file()
    ours = [one for one in logger.handlers if isinstance(one.formatter, JsonFormatter)]
    if ours and (file is None or getattr(ours[0], "baseFilename", "") == str(file)):
        return
    for one in ours:  # of a cluster that this process has left
        logger.removeHandler(one)
        one.close()
    handler: logging.Handler = logging.StreamHandler()
    if file is not None:
        handler = logging.FileHandler(file, delay=True)
        if not any(isinstance(one, _Terminal) for one in logger.handlers):
            logger.addHandler(_Terminal(logging.WARNING))
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


class _Terminal(logging.Handler):
    """What logging does for a logger without handlers: warnings go to the terminal, as text."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers and logging.lastResort:
            logging.lastResort.handle(record)


def _driver_file() -> Path:
    job = ray.get_runtime_context().get_job_id()
    return process.session_folder() / "logs" / f"raysys-driver-{job}-{os.getpid()}.log"


@functools.cache
def _submission(job: str) -> str:
    """The submission id of a job; empty of one that was not submitted."""
    return process.job_metadata().get("job_submission_id", "") if job else ""
