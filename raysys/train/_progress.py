"""Saying and tracking a training run from what its workers write."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raysys import tracking
from raysys.console import say
from raysys.errors import RaysysError
from raysys.train import _metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from raysys.data import Table
    from raysys.train._run_state import Record
    from raysys.train._settings import TrainSettings

_POLL_S = 1.0


@contextmanager
def followed(
    record: Record, tables: Mapping[str, Table], settings: TrainSettings, first: int
) -> Iterator[dict[str, Any]]:
    """Say each epoch and track the run, from what rank 0 writes; in a thread of this process.

    Args:
        record: The run's files.
        tables: Tracked with it, by what they hold.
        settings: Tracked with it.
        first: Step of the checkpoint that the run goes on from; 0 of a new one.

    Yields:
        A dict to fill with the run's result; one that stays empty has failed.
    """
    ended = threading.Event()
    result: dict[str, Any] = {}
    earlier = record.read("progress")

    def follow() -> None:
        try:
            track()
        except RaysysError as error:
            say(f"[{record.name}] is not tracked: {error}")

    def track() -> None:
        tracked: tracking.TrackedRun | None = None
        said, step = len(earlier["history"]) if earlier else 0, 0.0
        if first:
            say(f"[{record.name}] goes on after step {first}")
        while True:
            last = ended.wait(_POLL_S)
            progress = record.read("progress")
            if progress and (progress != earlier or (last and result)):
                for measured in progress["history"][said:]:
                    text = ", ".join(f"{key} {value:.4g}" for key, value in measured.items())
                    say(f"[{record.name}] {text}")
                said = max(said, len(progress["history"]))
                # Only now: opening a database would make the workers' start slower.
                tracked = tracked or tracking.open_run(
                    record.storage, "training", record.name, settings=settings.model_dump(),
                    tables=tables, fresh=not first,
                )  # fmt: skip
                for point in progress["points"]:
                    if point["step"] > step:
                        step = point["step"]
                        rest = {key: value for key, value in point.items() if key != "step"}
                        tracked.log(rest, step=int(step))
            if last:
                break
        if tracked is None:
            return
        for measured in result.get("history", []):
            rest = {key: value for key, value in measured.items() if key not in ("epoch", "step")}
            tracked.log(rest, step=int(measured["step"]))
        if result:
            # Only now: a pass over the data would make the training slower.
            tracked.log_tags({
                f"data.{name}.fingerprint": table.fingerprint for name, table in tables.items()
            })  # fmt: skip
            rows = record.rows("predictions")
            if rows is not None:
                tracked.log_rows("predictions", rows)
        finals = result["history"][-1] if result else {}
        tracked.end("FINISHED" if result else "FAILED", finals)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    _metrics.running(record.name, True)
    try:
        yield result
    finally:
        ended.set()
        follower.join()
        _metrics.running(record.name, False)
