"""Steps in the Ray dashboard and in Prometheus."""

from __future__ import annotations

from raysys.telemetry import metrics


def record(
    job: str, step: str, state: str, seconds: float | None = None, table_bytes: int | None = None
) -> None:
    """Count that a step came to a state; of one that is done, what it cost.

    Args:
        job: The job's name.
        step: The step's.
        state: "running", "done", "skipped", "retried", "failed".
        seconds: What it took.
        table_bytes: Of tables that passed through its process.
    """
    tags = {"job": job, "step": step}
    metrics.STEPS.inc(1, {**tags, "state": state})
    if state != "retried":
        metrics.STEP_RUNNING.set(float(state == "running"), tags)
    if seconds is not None:
        metrics.STEP_SECONDS.set(seconds, tags)
    if table_bytes is not None:
        metrics.STEP_TABLE_BYTES.set(table_bytes, tags)
