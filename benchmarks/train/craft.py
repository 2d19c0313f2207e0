"""What each setting of large-batch training costs and gains, under DDP on two workers.

Each setting alone against the defaults: step time, peak memory, and the loss after the same number
of examples. There are no bars: some settings are for GPUs, networks or models that are larger.
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks._figures import Report, run
from benchmarks.train.memory import Weighed
from benchmarks.train.tasks import text
from raysys import cluster, train
from raysys.data import Table
from raysys.storage import Storage

_EXAMPLES = 9600
_BATCH = 32
# For eight times the batch the learning rate is scaled by the optimizer's rule.
_LARGE: dict[str, Any] = {"batch_size": 8 * _BATCH, "base_batch_size": _BATCH}
CHANGES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "gradient_accumulation_steps 4": {"gradient_accumulation_steps": 4},
    "max_grad_norm 1": {"max_grad_norm": 1.0},
    "activation_checkpointing": {"activation_checkpointing": True},
    "gradient_compression fp16": {"gradient_compression": "fp16"},
    "gradient_compression powersgd": {"gradient_compression": "powersgd"},
    "compile": {"compile": True},
    "prefetch_batches 2": {"prefetch_batches": 2},
    "bf16": {"precision": "bf16"},
    "batch x 8": {"batch_size": 8 * _BATCH},
    "batch x 8, rate scaled": _LARGE,
    "batch x 8, rate scaled, lamb": {**_LARGE, "optimizer": "lamb"},
    "batch x 8, lars, rate 10": {
        "batch_size": 8 * _BATCH, "optimizer": "lars", "learning_rate": 10.0,
    },
}  # fmt: skip


def measure(report: Report, quick: bool) -> None:
    """Add a line of figures for each setting."""
    cluster.connect()
    table = Table.load(lambda: text()).materialize()
    examples = _EXAMPLES // (8 if quick else 1)
    usual = 0.0
    for name, changes in CHANGES.items():
        settings = train.TrainSettings.model_validate({
            "batch_size": _BATCH, "learning_rate": 2e-3, "epochs": 100, "evaluate": True,
            "checkpoint_steps": 10_000, **changes,
        })  # fmt: skip
        steps = examples // settings.batch_size
        settings = settings.model_copy(update={"max_steps": steps})
        with tempfile.TemporaryDirectory() as folder:
            task = Weighed(width=128, layers=4, folder=Path(folder))
            fitted = train.fit("craft", task, {"text": table}, settings, Storage(folder))
            peak = max(int(file.read_text()) for file in Path(folder).glob("*.peak"))
        last = fitted.history[-1]
        usual = usual or last["samples_per_s"]
        report.add(f"{name}: samples/s over the defaults'", last["samples_per_s"] / usual, "ratio")
        report.add(f"{name}: peak memory a worker", peak / 1e6, "MB")
        report.add(f"{name}: loss after {examples} examples", last["loss"], "nats")


if __name__ == "__main__":
    run(__doc__, measure)
