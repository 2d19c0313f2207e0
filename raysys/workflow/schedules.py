"""Command line of schedules, inside the cluster: `python -m raysys.workflow.schedules ACTION ...`.

`raysys schedule` submits it as a job, so that it needs only a cluster's address and token.
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

_PASSED_ON = ("RAYSYS_GIT_COMMIT", "RAYSYS_STORAGE", "MLFLOW_TRACKING_URI")


def main(action: str, *words: str) -> None:
    """Add, remove or list schedules."""
    cluster.connect()
    storage = Storage()
    if action == "add":
        name, cron, command, timezone = words
        env = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
        folder = Path.cwd()
        _scheduler.start(storage)  # first: the cluster has started before the schedule was added
        schedule = _schedule.add(storage, name, cron, command, folder, env=env, timezone=timezone)
        say(f"{name}: `{command}` next {_next(schedule)}")
    elif action == "remove":
        _schedule.remove(storage, *words)
        say(f"{words[0]}: removed")
    else:
        schedules = _schedule.list_schedules(storage)
        if not schedules:
            say("no schedules: `raysys schedule add` adds one")
            return
        _scheduler.start(storage)  # after a restart of the whole cluster
        for schedule in schedules:
            run = _schedule.last_run(storage, schedule.name)
            last = f"last {run['job']}" if run else "not yet run"
            say(f"{schedule.name}: {schedule.cron} ({schedule.timezone}), next "
                f"{_next(schedule)}, {last}: {schedule.command}")  # fmt: skip


def _next(schedule: _schedule.Schedule) -> str:
    seconds = schedule.next(time.time())
    if seconds is None:
        return "at the next start of a cluster"
    return f"at {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}Z"


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except RaysysError as error:
        raise SystemExit(f"error: {error}") from None
