"""Steps in the Ray dashboard and in Prometheus."""

from __future__ import annotations

from raysys import telemetry


def record(
    job: str, step: str, state: str, seconds: float | None = None, table_bytes: int = 0
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
    telemetry.counter(
        "raysys_steps_total", "Steps of jobs by what became of them", ("job", "step", "state")
    ).inc(1, {**tags, "state": state})
    if state != "retried":
        telemetry.gauge("raysys_step_running", "1 while a job's step runs", ("job", "step")).set(
            float(state == "running"), tags
        )
    if seconds is not None:
        telemetry.gauge("raysys_step_seconds", "Duration of a job's step", ("job", "step")).set(
            seconds, tags
        )
        telemetry.gauge(
            "raysys_step_table_bytes", "Bytes of tables that passed through a step's process",
            ("job", "step"),
        ).set(table_bytes, tags)  # fmt: skip
