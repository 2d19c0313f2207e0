"""Progress lines and tracking of a training run, from the files that its workers write."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raysys import tracking
from raysys.console import say
from raysys.errors import RaysysError
from raysys.telemetry import metrics

if TYPE_CHECKING:
    from raysys.data import Table
    from raysys.train._run_state import RunState
    from raysys.train._settings import TrainSettings

_POLL_S = 1.0


@contextmanager
def reported_progress(
    state: RunState, tables: Mapping[str, Table], settings: TrainSettings, first_step: int
) -> Iterator[dict[str, Any]]:
    """Print each epoch and track the run, in a thread of this process.

    Yields a dict for the run's result; a run that leaves it empty has failed. `first_step` is that
    of the checkpoint that the run resumes from; 0 for a new run.
    """
    ended, failed = threading.Event(), "FAILED"
    result: dict[str, Any] = {}
    earlier = state.read("progress")

    def follow() -> None:
        try:
            track()
        except RaysysError as error:
            say(f"[{state.name}] not tracked: {error}")

    def track() -> None:
        tracked: tracking.TrackedRun | None = None
        printed, step = len(earlier["history"]) if earlier else 0, 0.0
        workers = settings.num_workers
        if first_step:
            say(f"[{state.name}] resumes after step {first_step}")
        while True:
            last = ended.wait(_POLL_S)
            progress = state.read("progress")
            if progress and (progress != earlier or (last and result)):
                if progress.get("workers", workers) != workers:
                    workers = progress["workers"]
                    say(f"[{state.name}] trains on {workers} of {settings.num_workers} workers")
                for epoch in progress["history"][printed:]:
                    text = ", ".join(f"{key} {value:.4g}" for key, value in epoch.items())
                    say(f"[{state.name}] {text}")
                printed = max(printed, len(progress["history"]))
                # Not earlier: opening a database would slow down the workers' start.
                tracked = tracked or tracking.open_run(
                    state.storage, "training", state.name, settings=settings.model_dump(),
                    tables=tables, fresh=not first_step,
                )  # fmt: skip
                for point in progress["points"]:
                    if point["step"] > step:
                        step = point["step"]
                        tracked.log(_without(point, "step"), step=int(step))
            if last:
                break
        if tracked is None:
            return
        for epoch in result.get("history", []):
            tracked.log(_without(epoch, "epoch", "step"), step=int(epoch["step"]))
        if result:
            # Not earlier: a pass over the data would slow down the training.
            tracked.log_tags({
                f"data.{name}.fingerprint": table.fingerprint() for name, table in tables.items()
            })  # fmt: skip
            rows = state.rows("predictions")
            if rows is not None:
                tracked.log_rows("predictions", rows)
        finals = result["history"][-1] if result else {}
        tracked.end("FINISHED" if result else failed, finals)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    metrics.TRAIN_RUNNING.set(1, {"run": state.name})
    try:
        yield result
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, `raysys stop`
        failed = "KILLED"
        raise
    finally:
        ended.set()
        follower.join()
        metrics.TRAIN_RUNNING.set(0, {"run": state.name})


def _without(values: Mapping[str, float], *names: str) -> dict[str, float]:
    return {key: value for key, value in values.items() if key not in names}
