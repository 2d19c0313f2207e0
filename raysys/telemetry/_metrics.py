"""Metrics in the Ray dashboard and in Prometheus, beside Ray's own."""

import functools
from typing import Any


def record_stage(job: str, stage: str, seconds: float, driver_table_bytes: int) -> None:
    """Publish what a stage cost as `raysys_stage_*`, by job and stage."""
    tags = {"job": job, "stage": stage}
    _gauge("raysys_stage_seconds", "Duration of a job's stage").set(seconds, tags)
    _gauge("raysys_stage_driver_table_bytes", "Bytes of tables that passed through the driver").set(
        driver_table_bytes, tags
    )


@functools.cache
def _gauge(name: str, description: str) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(name, description, tag_keys=("job", "stage"))
