"""The catalogue of metrics: name, type, unit, labels and help of every one that raysys reports.

`python -m raysys.telemetry.metrics` prints it as the table of `clusters/monitoring/METRICS.md`.
"""

from __future__ import annotations

from raysys.telemetry._metrics import LONG_S, Counter, Gauge, Histogram, Metric

_STEP = ("job", "step")
_REPLICA = ("index", "shard", "replica")
_ACTION = ("application", "action")
_BATCH_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

STEPS = Counter("raysys_steps_total", "Steps of jobs by state reached", (*_STEP, "state"), "steps")
STEP_RUNNING = Gauge("raysys_step_running", "1 while a job's step runs", _STEP)
STEP_SECONDS = Gauge("raysys_step_seconds", "Duration of a job's step", _STEP, "s")
STEP_TABLE_BYTES = Gauge(
    "raysys_step_table_bytes", "Tables that passed through a step's process", _STEP, "bytes"
)

DATA_ROWS = Counter(
    "raysys_data_rows_total", "Rows of blocks created, by operation", ("operation",), "rows"
)
DATA_BYTES = Counter(
    "raysys_data_bytes_total", "Size of blocks created, by operation", ("operation",), "bytes"
)
DATA_VALIDATED_ROWS = Counter(
    "raysys_data_validated_rows_total", "Rows validated", ("schema",), "rows"
)
DATA_QUARANTINED_ROWS = Counter(
    "raysys_data_quarantined_rows_total", "Rows that failed validation", ("schema",), "rows"
)
STORAGE_WRITTEN_BYTES = Counter(
    "raysys_storage_written_bytes_total", "Data written to the storage root", unit="bytes"
)
STORAGE_FAILURES = Counter(
    "raysys_storage_failures_total", "Writes that the storage root refused", unit="writes"
)

TRAIN_RUNNING = Gauge("raysys_train_running", "1 while a training call runs", ("run",))
TRAIN_STARTS = Counter("raysys_train_starts_total", "Worker group starts", ("run",), "starts")
TRAIN_FAILURES = Counter(
    "raysys_train_failures_total", "Training runs that failed", ("run", "reason"), "runs"
)
TRAIN_STEP = Gauge("raysys_train_step", "Optimizer steps taken", ("run",), "steps")
TRAIN_STEPS = Gauge("raysys_train_steps", "Optimizer steps of the whole run", ("run",), "steps")
TRAIN_LOSS = Gauge("raysys_train_loss", "Mean training loss over about a second", ("run",))
TRAIN_SAMPLES_PER_SECOND = Gauge(
    "raysys_train_samples_per_second", "Training throughput", ("run",), "samples/s"
)
TRAIN_CHECKPOINT_SECONDS = Histogram(
    "raysys_train_checkpoint_seconds",
    "Time to write a worker's part of a checkpoint, beside the training",
    ("run",), "s", LONG_S,
)  # fmt: skip

TUNE_TRIALS = Counter(
    "raysys_tune_trials_total", "Trials by final state", ("search", "state"), "trials"
)
TUNE_BEST_SCORE = Gauge("raysys_tune_best_score", "Best score so far", ("search", "metric"))

MODELS_STORED = Counter(
    "raysys_models_stored_total", "Model versions stored", ("model",), "versions"
)
MODELS_PROMOTED = Counter(
    "raysys_models_promoted_total", "Aliases pointed at a version", ("model", "alias"), "promotions"
)

INDEX_ROWS = Gauge("raysys_index_rows", "Live rows", _REPLICA, "rows")
INDEX_PENDING = Gauge("raysys_index_pending", "Rows not yet in the graph", _REPLICA, "rows")
INDEX_TOMBSTONES = Gauge("raysys_index_tombstones", "Deleted rows in the graph", _REPLICA, "rows")
INDEX_VERSION = Gauge("raysys_index_version", "Version of the last batch of changes", _REPLICA)
INDEX_LAG = Gauge("raysys_index_lag", "Batches of changes not yet applied", _REPLICA, "batches")
INDEX_QUERY_SECONDS = Histogram(
    "raysys_index_query_seconds", "Time of a batch of queries in a shard", _REPLICA, "s"
)
INDEX_QUERIES = Counter("raysys_index_queries_total", "Query vectors", _REPLICA, "queries")
INDEX_REPLICAS = Gauge(
    "raysys_index_replicas", "Replicas that respond", ("index", "shard"), "replicas"
)
INDEX_REPLICAS_DESIRED = Gauge(
    "raysys_index_replicas_desired", "Desired replicas", ("index", "shard"), "replicas"
)
INDEX_CHANGES = Counter("raysys_index_changes_total", "Batches of changes", ("index",), "batches")

SERVE_REQUESTS = Counter(
    "raysys_serve_requests_total",
    "Requests by status class; application is empty where the gateway itself responded",
    ("application", "code"), "requests",
)  # fmt: skip
SERVE_SHED = Counter(
    "raysys_serve_shed_total", "Requests refused because they could not be answered in time",
    ("application", "by"), "requests",
)  # fmt: skip
GATEWAY_KEY_REQUESTS = Counter(
    "raysys_gateway_key_requests_total",
    "Requests by API key, admitted or refused as unknown, expired, application, scope, rate",
    ("key", "outcome"), "requests",
)  # fmt: skip
GATEWAY_KEY_ADDRESSES = Gauge(
    "raysys_gateway_key_addresses", "Addresses from which an API key was used within 24 hours",
    ("key",), "addresses",
)  # fmt: skip
SERVE_REPLICAS = Gauge(
    "raysys_serve_replicas", "Replicas that take requests", ("application",), "replicas"
)
SERVE_NODE_SECONDS = Histogram(
    "raysys_serve_node_seconds", "Time of one node over a batch", (*_ACTION, "node"), "s"
)
SERVE_BATCH_SECONDS = Histogram(
    "raysys_serve_batch_seconds", "Time of the graph over a batch", _ACTION, "s"
)
SERVE_LATENCY_SECONDS = Histogram(
    "raysys_serve_latency_seconds",
    "Time from arrival in a replica to the response, of each batch's oldest request",
    _ACTION, "s",
)  # fmt: skip
SERVE_BATCH_ROWS = Histogram(
    "raysys_serve_batch_rows", "Rows of a batch", _ACTION, "rows", _BATCH_ROWS
)
SERVE_QUEUE_ROWS = Gauge("raysys_serve_queue_rows", "Rows that wait in a replica", _ACTION, "rows")

CATALOGUE = tuple(value for value in [*globals().values()] if isinstance(value, Metric))


def reference_table() -> str:
    """The catalogue as a Markdown page."""
    rows = (
        f"| `{metric.name}` | {metric.kind} | {metric.unit} | {', '.join(metric.labels)} "
        f"| {metric.help} |\n"
        for metric in CATALOGUE
    )
    return (
        "# Metrics\n\nPrometheus shows each as `ray_<name>`, with Ray's labels `WorkerId`, "
        "`NodeAddress` and `SessionName` beside these.\n\n"
        "| name | type | unit | labels | |\n| --- | --- | --- | --- | --- |\n" + "".join(rows)
    )


if __name__ == "__main__":
    import sys

    sys.stdout.write(reference_table())
