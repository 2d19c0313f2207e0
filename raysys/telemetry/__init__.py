"""Metrics, JSON logs, resource meters and measured object-store traffic."""

from raysys.telemetry._metrics import Counter, Gauge, Histogram, Metric
from raysys.telemetry._resource_meters import NodeMeter, ProcessMeter
from raysys.telemetry.logs import log_context, set_up, worker_hook
from raysys.telemetry.object_store import DriverMeter, counts_reads, store_bytes

__all__ = [
    "Counter",
    "DriverMeter",
    "Gauge",
    "Histogram",
    "Metric",
    "NodeMeter",
    "ProcessMeter",
    "counts_reads",
    "log_context",
    "set_up",
    "store_bytes",
    "worker_hook",
]
