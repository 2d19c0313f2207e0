"""What a job costs: bytes in the object store and through the driver, CPU, memory, metrics."""

from raysys.telemetry._metrics import (
    LONG_S,
    SHORT_S,
    Counter,
    Gauge,
    Histogram,
    counter,
    gauge,
    histogram,
)
from raysys.telemetry._resource_meters import NodeMeter, ProcessMeter
from raysys.telemetry._worker_setup import WORKER_HOOK, set_up
from raysys.telemetry.logs import log_context
from raysys.telemetry.object_store import READ_HOOK, DriverMeter, count_reads, store_bytes

__all__ = [
    "LONG_S",
    "READ_HOOK",
    "SHORT_S",
    "WORKER_HOOK",
    "Counter",
    "DriverMeter",
    "Gauge",
    "Histogram",
    "NodeMeter",
    "ProcessMeter",
    "count_reads",
    "counter",
    "gauge",
    "histogram",
    "log_context",
    "set_up",
    "store_bytes",
]
