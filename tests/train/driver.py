"""A driver in a process of its own, for tests that kill it; run as a program."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysys import cluster
from raysys.data import Table
from raysys.storage import Storage
from raysys.train import FitResult, TrainSettings, fit
from tests.train.tasks import Regression, SlowRegression, rows


class Observed(SlowRegression):
    """Writes its process id, for a test to kill it."""

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        (self.log.parent / f"{os.getpid()}.worker").touch()
        return super().prepare(tables)


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings.model_validate({
        "epochs": 12, "batch_size": 500, "learning_rate": 0.05, "checkpoint_steps": 4,
        "threads_per_worker": 1, **changes,
    })  # fmt: skip


def run(folder: Path, slow: bool, **changes: Any) -> FitResult:
    """A run with the name of the folder."""
    task = Observed(folder / "log") if slow else Regression()
    tables = {"rows": Table.from_arrow(rows())}
    return fit(folder.name, task, tables, settings(**changes), Storage(folder))


if __name__ == "__main__":
    cluster.connect(sys.argv[2])
    run(Path(sys.argv[1]), slow=True)
