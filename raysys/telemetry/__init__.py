"""What a job costs: bytes in the object store and through the driver, metrics for Prometheus."""

from raysys.telemetry._metrics import record_stage
from raysys.telemetry.object_store import READ_HOOK, DriverMeter, count_reads, store_bytes

__all__ = ["READ_HOOK", "DriverMeter", "count_reads", "record_stage", "store_bytes"]
