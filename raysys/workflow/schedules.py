"""Schedules, from inside the cluster: `python -m raysys.workflow.schedules add|list|remove ...`.

`raysys schedule` submits this as a job, so that it works with a cluster's address and token alone.
"""

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from raysys import cluster
from raysys.console import say
from raysys.errors import RaysysError
from raysys.storage import Storage
from raysys.workflow import _schedule, _scheduler

_PASSED = ("RAYSYS_GIT_COMMIT", "RAYSYS_STORAGE", "MLFLOW_TRACKING_URI")


def main(action: str, *words: str) -> None:
    """Do what the command line says."""
    cluster.connect()
    storage = Storage()
    if action == "add":
        name, cron, command, zone = words
        env = {key: os.environ[key] for key in _PASSED if key in os.environ}
        made = _schedule.add(storage, name, cron, command, Path.cwd(), env=env, zone=zone)
        _scheduler.start(storage)
        say(f"{name}: `{command}` next at {_moment(made.next(time.time()))}")
    elif action == "remove":
        _schedule.remove(storage, *words)
        say(f"{words[0]}: removed")
    else:
        known = _schedule.every(storage)
        if known:
            _scheduler.start(storage)  # after a new start of the whole cluster
        for one in known:
            last = _schedule.last(storage, one.name)
            before = f"last {last['job']}" if last else "not yet run"
            say(f"{one.name}: {one.cron} ({one.zone}), next at {_moment(one.next(time.time()))}, "
                f"{before}: {one.command}")  # fmt: skip
        if not known:
            say("no schedules: `raysys schedule add` makes one")


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}Z"


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except RaysysError as error:
        raise SystemExit(f"error: {error}") from None
