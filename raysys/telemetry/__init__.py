"""What a job costs: bytes in the object store and through the driver, CPU, memory, metrics."""

from raysys.telemetry._meters import NodeMeter, ProcessMeter
from raysys.telemetry._metrics import record_stage
from raysys.telemetry.object_store import READ_HOOK, DriverMeter, count_reads, store_bytes

__all__ = [
    "READ_HOOK",
    "DriverMeter",
    "NodeMeter",
    "ProcessMeter",
    "count_reads",
    "record_stage",
    "store_bytes",
]
