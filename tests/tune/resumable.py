"""A search whose trials log their rounds, to be killed and resumed."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysys import cluster
from raysys.data import Table
from raysys.storage import Storage
from raysys.tune import Float, SearchResult, TrialReporter, TrialResources, TrialScheduler, search

ROUNDS = 4


def objective(
    params: dict[str, Any], tables: Mapping[str, pa.Table], report: TrialReporter
) -> None:
    log = Path(tables["paths"]["log"][0].as_py())
    folder = report.resume()
    total = float((folder / "total").read_text()) if folder else 0.0
    while report.last_round < ROUNDS:
        with log.open("a") as file:
            file.write(f"{params['x']!r} {report.last_round + 1}\n")
        time.sleep(0.2)
        total += params["x"]

        def save(folder: Path, total: float = total) -> None:
            (folder / "total").write_text(repr(total))

        report({"total": total}, save=save)


def run(storage: Storage, log: Path) -> SearchResult:
    table = Table.load(lambda: pa.table({"log": [str(log)]}))
    return search(
        "sums", objective, {"paths": table}, {"x": Float(0, 1)}, storage,
        metric="total", n_trials=5, scheduler=TrialScheduler(ROUNDS, grace_rounds=3),
        resources=TrialResources(cpus=1),
    )  # fmt: skip


if __name__ == "__main__":
    # By the module's own name, so that workers can import what is pickled.
    from tests.tune import resumable

    cluster.connect(sys.argv[3])
    resumable.run(Storage(sys.argv[1]), Path(sys.argv[2]))
