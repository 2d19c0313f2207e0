"""Metrics of steps, for the Ray dashboard and Prometheus."""

from __future__ import annotations

from raysys.telemetry import metrics


def record(
    job: str, step: str, state: str, seconds: float | None = None, table_bytes: int | None = None
) -> None:
    """Count that a step reached a state, and record its cost when it is done.

    Args:
        job: Name of the job.
        step: Name of the step.
        state: "running", "done", "skipped", "retried" or "failed".
        seconds: Duration, of a step that is done.
        table_bytes: Bytes of tables that passed through its process.
    """
    tags = {"job": job, "step": step}
    metrics.STEPS.inc(1, {**tags, "state": state})
    if state != "retried":
        metrics.STEP_RUNNING.set(float(state == "running"), tags)
    if seconds is not None:
        metrics.STEP_SECONDS.set(seconds, tags)
    if table_bytes is not None:
        metrics.STEP_TABLE_BYTES.set(table_bytes, tags)
