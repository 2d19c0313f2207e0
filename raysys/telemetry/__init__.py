"""What a job costs: bytes in the object store and through the driver, CPU, memory, metrics."""

from raysys.telemetry._metrics import (
    Counter,
    Gauge,
    Histogram,
    Metric,
)
from raysys.telemetry._resource_meters import NodeMeter, ProcessMeter
from raysys.telemetry._worker_setup import WORKER_HOOK, set_up
from raysys.telemetry.logs import log_context
from raysys.telemetry.object_store import READ_HOOK, DriverMeter, count_reads, store_bytes

__all__ = [
    "READ_HOOK",
    "WORKER_HOOK",
    "Counter",
    "DriverMeter",
    "Gauge",
    "Histogram",
    "Metric",
    "NodeMeter",
    "ProcessMeter",
    "count_reads",
    "log_context",
    "set_up",
    "store_bytes",
]
